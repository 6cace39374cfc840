"""One image file as a picture: the right values whatever it holds, in bounded memory, without Pillow's remarks."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lewel.data import pictures
from lewel.data.found import look
from lewel.data.opening import UnreadableImage
from lewel.data.per_sample import View, fit
from lewel.recipe.schema import Augmentation, Data

RAMP = np.linspace(0, 1, 64)[None].repeat(48, 0)
COLOURS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 0.5)], -1)
BYTES = (255 * COLOURS).astype(np.uint8)


@pytest.fixture(autouse=True)
def no_remarks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def values(path: Path, **settings) -> np.ndarray:
    image = pictures.read(path, Data(**settings))
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def assert_ramp(path: Path, ramp: np.ndarray = RAMP) -> None:
    got = values(path)
    assert np.abs(got - 255 * ramp[..., None]).max() <= 1


def tiff(
    path: Path,
    pixels: np.ndarray,
    photometric: int,
    sample_format: int,
    deflated: bool = False,
    order: str = "<",
    planes: bool = False,
) -> Path:
    """A TIFF of any kind of values, which Pillow writes few of."""
    height, width, *channels = pixels.shape
    count, stored = (channels or [1])[0], pixels.astype(pixels.dtype.newbyteorder(order))
    parts = [np.ascontiguousarray(part).tobytes() for part in (np.moveaxis(stored, -1, 0) if planes else [stored])]
    parts = [zlib.compress(part) for part in parts] if deflated else parts
    starts = [600 + sum(map(len, parts[:i])) for i in range(len(parts))]
    tags = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * count, 259: [8 if deflated else 1]}
    tags |= {262: [photometric], 273: starts, 277: [count], 278: [height], 279: [len(part) for part in parts]}
    tags |= {284: [1 + planes]} | ({338: [2]} if count == 4 and photometric == 2 else {})
    tags |= {339: [sample_format] * count}
    entries, beyond = b"", b""
    for tag, numbers in tags.items():
        kind = 4 if tag in (273, 279) else 3
        packed = struct.pack(f"{order}{len(numbers)}{'I' if kind == 4 else 'H'}", *numbers)
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers))
        entries += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", 300 + len(beyond))
        beyond += packed if len(packed) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags)) + entries
    path.write_bytes((head.ljust(300, b"\0") + beyond).ljust(600, b"\0") + b"".join(parts))
    return path


def png(path: Path, wide: np.ndarray, kind: int) -> Path:
    """A PNG of 16 bits: kind 2 is RGB, 4 gray with alpha, 6 RGB with alpha."""
    rows = b"".join(b"\0" + row.tobytes() for row in wide.astype(">u2"))
    head = struct.pack(">IIBBBBB", wide.shape[1], wide.shape[0], 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    return path


class TestWideValues:
    @pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
    @pytest.mark.parametrize("highest", [65535, 4095, 255])
    def test_sixteen_bits_are_scaled_by_their_own_range(self, ending, highest, tmp_path):
        path = tmp_path / f"x.{ending}"
        wide = (highest * RAMP).astype(np.uint16)
        if ending == "pgm":
            path.write_bytes(b"P5 64 48 65535\n" + wide.astype(">u2").tobytes())
        else:
            Image.fromarray(wide).save(path)
        assert_ramp(path)

    @pytest.mark.parametrize("ending", ["tiff", "pfm"])
    def test_floats_whatever_is_not_finite(self, ending, tmp_path):
        floats = (RAMP * 0.02 - 0.01).astype(np.float32)
        expected = RAMP.copy()
        for place, (value, shown) in enumerate(((np.nan, 0), (np.inf, 1), (-np.inf, 0))):
            floats[5, 20 + place], expected[5, 20 + place] = value, shown
        Image.fromarray(floats).save(tmp_path / f"x.{ending}")
        assert_ramp(tmp_path / f"x.{ending}", expected)

    def test_integers_of_32_bits_with_and_without_a_sign(self, tmp_path):
        assert_ramp(tiff(tmp_path / "u.tiff", (RAMP * (2**32 - 1)).astype("<u4"), 1, 1))
        assert_ramp(tiff(tmp_path / "i.tiff", (RAMP * 1e6 - 3e5).astype("<i4"), 1, 2))
        assert_ramp(tiff(tmp_path / "s.tiff", (RAMP * 65535 - 32768).astype("<i2"), 1, 2))
        assert_ramp(tiff(tmp_path / "b.tiff", (RAMP * 255 - 128).astype("i1"), 1, 2))

    @pytest.mark.parametrize("kind", ["u1", "<u2"])
    def test_where_0_is_white(self, kind, tmp_path):
        assert_ramp(tiff(tmp_path / "x.tiff", (RAMP * np.iinfo(kind).max).astype(kind), 0, 1), 1 - RAMP)

    @pytest.mark.parametrize("value", [0, 7, 65535])
    def test_a_constant_image_is_one(self, value, tmp_path):
        Image.fromarray(np.full((4, 5), value, np.uint16)).save(tmp_path / "x.png")
        assert len(np.unique(values(tmp_path / "x.png"))) == 1
        Image.fromarray(np.full((4, 5), np.nan, np.float32)).save(tmp_path / "x.tiff")
        with pytest.raises(UnreadableImage, match="none of its values is a number"):
            values(tmp_path / "x.tiff")

    @pytest.mark.parametrize("alpha", [False, True])
    @pytest.mark.parametrize("highest", [65535, 32767, 16383, 10_000, 5000, 4095, 1000])
    @pytest.mark.parametrize("ending", ["png", "tiff", "deflated.tiff"])
    def test_sixteen_bit_colours_of_any_depth(self, ending, highest, alpha, tmp_path):
        wide = (highest * COLOURS).astype(np.uint16)
        if alpha:
            wide = np.concatenate([wide, np.full_like(wide[..., :1], 65535)], -1)
        path = tmp_path / f"x.{ending}"
        if ending == "png":
            png(path, wide, 6 if alpha else 2)
        else:
            tiff(path, wide, 2, 1, deflated=ending.startswith("deflated"))
        assert np.abs(values(path) - 255 * COLOURS).max() <= 1

    @pytest.mark.parametrize("form", ["ppm", "gray with alpha", "cmyk", "planes", "deflated planes"])
    def test_forms_whose_lower_bytes_are_out_of_reach_are_right_or_refused(self, form, tmp_path):
        for highest in (65535, 16383, 4095):
            wide, path = (highest * COLOURS).astype(np.uint16), tmp_path / f"x.{form[:3]}"
            expected = COLOURS
            if form == "ppm":
                path.write_bytes(b"P6 64 48 65535\n" + wide.astype(">u2").tobytes())
            elif form == "cmyk":
                tiff(path, np.concatenate([wide, np.zeros_like(wide[..., :1])], -1), 5, 1)
                expected = 1 - COLOURS * (highest / 65535)  # light inks are no dark picture
            elif form == "gray with alpha":
                png(path, np.stack([wide[..., 0], np.full_like(wide[..., 0], 65535)], -1), 4)
                expected = RAMP[..., None]
            else:
                tiff(path, wide, 2, 1, deflated=form.startswith("deflated"), planes=True)
            if highest == 4095 or form == "planes":
                with pytest.raises(UnreadableImage, match="16-bit colours"):
                    values(path)
            else:
                assert np.abs(values(path) - 255 * expected).max() <= (5 if highest == 16383 else 1)

    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("deflated", [False, True])
    @pytest.mark.parametrize(("kind", "sample_format"), [("i2", 2), ("f4", 3), ("u2", 1), ("i4", 2)])
    def test_bytes_are_swapped_once(self, kind, sample_format, deflated, order, tmp_path):
        ramp = (RAMP * 60_000 - (0 if kind == "u2" else 30_000)).astype(kind)
        assert_ramp(tiff(tmp_path / "x.tiff", ramp, 1, sample_format, deflated=deflated, order=order))

    def test_the_ends_of_float32_are_no_data(self, tmp_path):
        floats, expected = RAMP.astype(np.float32), RAMP.copy()
        floats[3, 4:6], expected[3, 4:6] = (-3.4e38, np.finfo(np.float32).max), (0, 1)
        Image.fromarray(floats).save(tmp_path / "x.tiff")
        assert_ramp(tmp_path / "x.tiff", expected)

    @pytest.mark.parametrize(
        ("kind", "count"), [("gray", 1), ("colours", 1), ("dark colours", 1), ("ppm", 1), ("bytes", 0)]
    )
    def test_more_than_eight_bits_are_told_of(self, kind, count, tmp_path):
        path = tmp_path / "x.png"
        if kind == "ppm":
            path.write_bytes(b"P6 64 48 65535\n" + (65535 * COLOURS).astype(">u2").tobytes())
        elif kind == "gray":
            Image.fromarray((4095 * RAMP).astype(np.uint16)).save(path)
        elif kind == "bytes":
            Image.fromarray(BYTES).save(path)
        else:
            png(path, ((5000 if kind == "dark colours" else 65535) * COLOURS).astype(np.uint16), 2)
        told = [line for line in look([str(path)], False)[1] if "1 hold more than 8 bits, scaled to 8" in line]
        assert len(told) == count

    def test_of_full_sixteen_bit_colours_the_upper_eight_are_taken(self, tmp_path):
        """Not scaled by their range: that would change colours that 8 bits show as they are."""
        wide = 257 * (40 + BYTES // 2).astype(np.uint16)
        assert np.array_equal(values(tiff(tmp_path / "x.tiff", wide, 2, 1)), 40 + BYTES // 2)
        (tmp_path / "x.ppm").write_bytes(b"P6 64 48 65535\n" + wide.astype(">u2").tobytes())
        assert np.array_equal(values(tmp_path / "x.ppm"), 40 + BYTES // 2)


class TestPillow:
    """What differs between versions of Pillow, and what it does unasked."""

    def test_parts_of_files_are_plain_tuples_before_11(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pictures, "_tiles", lambda file: [tuple(part) for part in file.tile])
        Image.fromarray(BYTES).save(tmp_path / "x.jpg")
        assert values(tmp_path / "x.jpg").shape == BYTES.shape
        assert np.abs(values(png(tmp_path / "x.png", (4095 * COLOURS).astype(np.uint16), 2)) - BYTES).max() <= 1

    def test_what_is_wrong_is_said_once(self, tmp_path, caplog):
        tiff(tmp_path / "x.tiff", np.zeros((4, 5, 13), np.uint8), 2, 1)
        with pytest.raises(UnreadableImage):
            values(tmp_path / "x.tiff")
        assert not caplog.records

    def test_no_program_is_started_for_a_file(self, tmp_path):
        eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
        (tmp_path / "x.jpg").write_bytes(eps)
        with pytest.raises(UnreadableImage, match="no image of the kinds that are read"):
            values(tmp_path / "x.jpg")

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
    def test_whatever_the_suffix_says(self, kind, tmp_path):
        Image.fromarray(BYTES).save(tmp_path / "x.jpg", format=kind)
        assert values(tmp_path / "x.jpg").shape == BYTES.shape

    def test_other_warnings_are_said_once_however_many_images_are_read(self, tmp_path):
        Image.fromarray(BYTES).quantize(32).save(tmp_path / "x.png", transparency=bytes(32))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            values(tmp_path / "x.png")
            for _ in range(3):
                warnings.warn("of a user's encoder", stacklevel=1)
                values(tmp_path / "x.png")
        assert len(caught) == 1


class TestBytes:
    """Images of 8 bits keep the bits that Pillow's own conversion gives."""

    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
    def test_in_every_kind_of_file_that_has_it(self, mode, tmp_path):
        for ending in ("png", "jpg", "tiff", "webp", "gif", "bmp", "ppm"):
            path = tmp_path / f"x.{ending}"
            try:
                Image.fromarray(BYTES).convert(mode).save(path)
            except (OSError, ValueError):  # this kind has no such mode
                continue
            with Image.open(path) as file:
                expected = np.asarray(file.convert("RGB"))
            assert np.array_equal(values(path), expected)
            if mode in ("RGB", "CMYK", "YCbCr"):  # inverted ones among them would be far off
                assert np.abs(expected.astype(int) - BYTES).mean() < 6

    def test_a_transparent_palette(self, tmp_path):
        palette = Image.fromarray(BYTES).quantize(32)
        palette.save(tmp_path / "x.png", transparency=bytes(16) + bytes([255]) * 16)
        assert np.array_equal(values(tmp_path / "x.png"), np.asarray(palette.convert("RGB")))

    @pytest.mark.parametrize("ending", ["gif", "tiff", "webp", "png"])
    def test_the_first_of_several(self, ending, tmp_path):
        frames = [Image.fromarray(np.roll(BYTES, 20 * i, 1)) for i in range(3)]
        lossless = {"lossless": True} if ending == "webp" else {}
        frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], **lossless)
        assert np.abs(values(tmp_path / f"x.{ending}") - BYTES).max() <= 4


class TestExif:
    @pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turned_where_asked_for(self, orientation, ending, tmp_path):
        path, exif = tmp_path / f"x.{ending}", Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(BYTES).save(path, exif=exif)
        with Image.open(path) as file:
            as_it_lies, upright = (
                np.asarray(file.convert("RGB")),
                np.asarray(ImageOps.exif_transpose(file).convert("RGB")),
            )
        assert np.array_equal(values(path), as_it_lies)
        assert np.array_equal(values(path, exif_rotate=True), upright)

    @pytest.mark.parametrize("exif", [b"Exif\0\0of no use", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0", b""])
    def test_broken_exif_turns_nothing(self, exif, tmp_path):
        Image.fromarray(BYTES).save(tmp_path / "x.jpg", exif=exif)
        assert np.array_equal(values(tmp_path / "x.jpg", exif_rotate=True), values(tmp_path / "x.jpg"))


class TestSize:
    def test_pillows_own_limit_is_neither_met_nor_changed(self, tmp_path, monkeypatch):
        Image.fromarray(BYTES).save(tmp_path / "x.png")
        for limit in (2000, 1000):  # above it Pillow warns, above twice of it it refuses
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            assert values(tmp_path / "x.png").shape == BYTES.shape
            with pytest.raises(
                UnreadableImage, match=r"3,072 pixels, more than data.max_pixels 3,071, which --data.max-pixels sets"
            ):
                values(tmp_path / "x.png", max_pixels=3071)
            assert limit == Image.MAX_IMAGE_PIXELS

    def test_nor_met_by_what_comes_after_reading(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        Image.fromarray(BYTES).save(tmp_path / "x.png")
        assert look([str(tmp_path / "x.png")], False) == ("64x48 pixels", [])
        image = pictures.read(tmp_path / "x.png", Data())
        assert fit(image, 32).size == (32, 32)
        assert View(Augmentation(), 32, 0)(image, 0, 0, 0).shape == (3, 32, 32)
        assert Image.MAX_IMAGE_PIXELS == 10

    @pytest.mark.parametrize("size", [(2, 60_000), (60_000, 2), (1, 1000), (1000, 1), (1, 1), (8, 65)])
    def test_of_a_long_strip_only_the_middle_is_enlarged(self, size, monkeypatch):
        sides, resize = [], Image.Image.resize
        monkeypatch.setattr(
            Image.Image, "resize", lambda image, to, *how, **more: sides.append(to) or resize(image, to, *how, **more)
        )
        image = Image.new("RGB", size, (10, 20, 30))
        middle = tuple(side // 2 for side in size)
        image.putpixel(middle, (250, 20, 30))
        assert (np.asarray(fit(image, 224))[80:144, 80:144, 0] > 10).any()
        assert View(Augmentation(), 32, 0)(image, 0, 0, 0).shape == (3, 32, 32)
        assert max(max(to) for to in sides) <= 8 * 256
