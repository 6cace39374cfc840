"""The op against the lines that it replaces: cases, providers, what is measured of a call."""
