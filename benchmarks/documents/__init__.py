"""What documents quote of the measurements: tables, arithmetic, pictures."""
