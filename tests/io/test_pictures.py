"""Photos of every mode, size and orientation come in right; fuzzed ones are read or refused, never worse."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from fromfew.errors import FromfewError
from fromfew.io.pictures import read_mask, read_picture

RED, BLUE = (200, 30, 40), (20, 60, 190)


def halves(size: tuple[int, int] = (64, 32)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def near(pixel: tuple[int, ...], colour: tuple[int, ...], within: int = 14) -> bool:
    return all(abs(a - b) <= within for a, b in zip(pixel, colour, strict=True))


def saved(folder: Path, image: Image.Image, name: str, **how) -> Path:
    image.save(folder / name, **how)
    return folder / name


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tif", "a.avif", "a.ppm", "A.JPEG"])
def test_every_form_comes_in_as_upright_rgb(tmp_path, name):
    picture = read_picture(saved(tmp_path, halves(), name))
    assert (picture.image.mode, picture.image.size, picture.mask) == ("RGB", (64, 32), None)
    assert near(picture.image.getpixel((5, 5)), RED)
    assert near(picture.image.getpixel((58, 5)), BLUE)
    assert len(picture.sha256) == 64


def test_the_ending_does_not_matter_the_bytes_do(tmp_path):
    halves().save(tmp_path / "a.jpg", "PNG")
    assert read_picture(tmp_path / "a.jpg").image.size == (64, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_the_orientation_tag_is_obeyed(tmp_path, orientation, name):
    flip = Image.Transpose
    turns = {2: flip.FLIP_LEFT_RIGHT, 3: flip.ROTATE_180, 4: flip.FLIP_TOP_BOTTOM, 5: flip.TRANSPOSE,
             6: flip.ROTATE_90, 7: flip.TRANSVERSE, 8: flip.ROTATE_270}  # fmt: skip
    upright = halves()
    upright.paste((250, 250, 250), (0, 0, 16, 16))
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, stored, name, exif=exif, **({"quality": 95} if name != "a.png" else {}))
    seen = np.asarray(read_picture(path).image).astype(int)
    assert seen.shape == (32, 64, 3)
    assert abs(seen - np.asarray(upright).astype(int)).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LAB", "I;16", "I", "F"])
def test_every_mode_comes_in_with_its_colours(tmp_path, mode):
    source = halves()
    grey = source.convert("L")
    if mode in ("I;16", "I", "F"):
        values = np.asarray(grey).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        source = Image.fromarray(values * 257 if mode != "F" else values / 255)
    elif mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        source = ImageCms.profileToProfile(source, srgb, lab, outputMode="LAB")
    else:
        source = source.quantize(8) if mode == "P" else source.convert(mode)
    if mode in ("HSV", "RGBX"):  # no file form keeps these: they come in as what the file form makes of them
        source = source.convert("RGB")
    picture = read_picture(saved(tmp_path, source, "a.tif"))
    assert picture.image.mode == "RGB"
    expected = grey.convert("RGB") if mode in ("L", "I;16", "I", "F") else halves()
    if mode != "1":
        assert near(picture.image.getpixel((5, 5)), expected.getpixel((5, 5)))
        assert near(picture.image.getpixel((58, 5)), expected.getpixel((58, 5)))


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    picture = read_picture(saved(tmp_path, Image.fromarray(np.tile(ramp, (32, 1))), "a.png"))
    row = [picture.image.getpixel((x, 0))[0] for x in range(64)]
    assert row == [round(value / 257) for value in ramp.tolist()]


def test_a_cmyk_jpeg_is_not_inverted(tmp_path):
    picture = read_picture(saved(tmp_path, halves().convert("CMYK"), "a.jpg", quality=95))
    assert near(picture.image.getpixel((5, 5)), RED, 25)
    assert near(picture.image.getpixel((58, 5)), BLUE, 25)


def test_a_colour_profile_is_applied(tmp_path):
    # A profile whose red and blue are swapped shows whether it was used at all.
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = plain.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    same = read_picture(saved(tmp_path, halves(), "same.png", icc_profile=plain)).image
    other = read_picture(saved(tmp_path, halves(), "other.png", icc_profile=swapped)).image
    assert near(same.getpixel((5, 5)), RED, 2)
    assert near(other.getpixel((5, 5)), RED[::-1], 60)
    assert not near(other.getpixel((5, 5)), RED, 60)


def test_a_damaged_profile_is_noted_and_passed_over(tmp_path):
    picture = read_picture(saved(tmp_path, halves(), "a.png", icc_profile=b"nonsense" * 20))
    assert near(picture.image.getpixel((5, 5)), RED, 0)
    assert "its colour profile is damaged: not applied" in picture.notes


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_becomes_the_mask_and_white(tmp_path, mode):
    alpha = Image.new("L", (64, 32), 255)
    alpha.paste(0, (32, 0, 64, 32))
    source = halves()
    source.putalpha(alpha)
    path = saved(tmp_path, source.convert("LA") if mode == "LA" else source, "a.png")
    if mode == "PA":
        path = saved(tmp_path, source.quantize(16), "p.png")
    picture = read_picture(path)
    assert picture.mask is not None
    assert picture.image.getpixel((60, 5)) == (255, 255, 255)
    assert (picture.mask.getpixel((5, 5)), picture.mask.getpixel((60, 5))) == (255, 0)
    assert picture.mask.size == picture.image.size


def test_a_palette_with_one_transparent_colour_has_a_mask(tmp_path):
    source = halves().quantize(4)
    path = saved(tmp_path, source, "a.gif", transparency=source.getpixel((60, 5)))
    mask = read_picture(path).mask
    assert mask is not None
    assert (mask.getpixel((5, 5)), mask.getpixel((60, 5))) == (255, 0)


def test_opaque_alpha_is_no_mask(tmp_path):
    assert read_picture(saved(tmp_path, halves().convert("RGBA"), "a.png")).mask is None


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_an_animation_the_first_frame_is_used(tmp_path, name):
    more = [Image.new("RGB", (64, 32), (0, shade, 0)) for shade in (60, 120, 180)]
    picture = read_picture(saved(tmp_path, halves(), name, save_all=True, append_images=more))
    assert near(picture.image.getpixel((5, 5)), RED)
    assert near(picture.image.getpixel((58, 5)), BLUE)
    assert "animated: the first frame is used" in picture.notes


def test_damaged_exif_does_not_lose_the_picture(tmp_path):
    picture = read_picture(saved(tmp_path, halves(), "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert picture.image.size == (64, 32)


def test_a_mask_may_be_labels_or_transparency_or_larger_than_its_picture(tmp_path):
    labels = Image.new("L", (64, 32), 0)
    labels.paste(1, (0, 0, 32, 32))
    wide = labels.point(lambda value: value * 255).resize((128, 64), Image.Resampling.NEAREST)
    seen = Image.merge("LA", (Image.new("L", (64, 32), 0), labels.point(lambda value: value * 255)))
    for number, image in enumerate((labels, wide, seen, wide.convert("1"), wide.convert("RGB"))):
        mask = read_mask(saved(tmp_path, image, f"{number}.png"), (64, 32))
        assert mask.size == (64, 32)
        assert (mask.getpixel((5, 5)), mask.getpixel((60, 5))) == (255, 0)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]))
def test_a_damaged_picture_is_read_or_refused_but_never_breaks(tmp_path, data, form):
    buffer = io.BytesIO()
    halves().save(buffer, form)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a").write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    said = str(tmp_path / "a")
    try:
        assert read_picture(tmp_path / "a").image.mode == "RGB"
    except FromfewError as error:
        said = str(error)
    assert str(tmp_path / "a") in said


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(min_size=1, max_size=300))
def test_any_bytes_are_refused_or_read_but_never_break(tmp_path, raw):
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(FromfewError, match="/a' "):
        read_picture(tmp_path / "a")
