"""VOC folders as people have them: what is read from lists and XML files, and what is refused before a run."""

from pathlib import Path

import pytest
from PIL import Image

from pretrain.common.errors import UserError
from transfer.data import voc_boxes
from transfer.data.voc_boxes import CLASSES, Box

DOG = CLASSES.index("dog") + 1
BOX = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>50</xmax><ymax>60</ymax></bndbox>"
XYXY = (10.0, 20.0, 50.0, 60.0)
SIZE = "<size><width>128</width><height>96</height><depth>3</depth></size>"


def _folder(
    root: Path, body: str, *, image: str = "a.jpg", listing: bytes = b"a\n", encoding: str = "utf-8"
) -> Path:
    """A folder with a list `test`, one image of 128 x 96 pixels and its XML file."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/test.txt").write_bytes(listing)
    Image.new("RGB", (128, 96)).save(root / "JPEGImages" / image, "PNG" if image.endswith("png") else "JPEG")
    (root / "Annotations" / f"{Path(image).stem}.xml").write_bytes(
        f"<annotation>{body}</annotation>".encode(encoding)
    )
    return root


def _object(more: str = "", name: str = "dog", box: str = BOX) -> str:
    return f"<object><name>{name}</name>{more}{box}</object>"


def _refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        voc_boxes.read_split(folder, "test")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        SIZE + _object("<pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"),
        SIZE + _object(),
        SIZE + _object("<pose/><truncated/><difficult/>"),
        SIZE + _object("<difficult> </difficult>"),
        SIZE + _object(name="\n  dog "),
        SIZE + _object(box=BOX.replace("11", " 11.0\n")),
        _object(),  # no size: the image's
        "<size><width>0</width><height>0</height></size>" + _object(),
        "<size><width/><height/></size>" + _object(),
        "<folder>/home/me</folder><filename>b.png</filename><path>C:\\b.png</path>" + SIZE + _object(),
        SIZE + _object("<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"),
        SIZE + "<object><part><name>head</name>" + BOX.replace("11", "12") + f"</part><name>dog</name>{BOX}</object>",
    ],
)  # fmt: skip
def test_variants_that_mean_the_same(tmp_path: Path, body: str) -> None:
    (picture,) = voc_boxes.read_split(_folder(tmp_path, body), "test")
    assert picture == ("a", tmp_path / "JPEGImages/a.jpg", (128, 96), (Box(DOG, XYXY, False),))


def test_difficult_and_fractions(tmp_path: Path) -> None:
    box = "<bndbox><xmin>10.5</xmin><ymin>0</ymin><xmax>128.4</xmax><ymax>60.75</ymax></bndbox>"
    folder = _folder(tmp_path, SIZE + _object("<difficult>1</difficult>", box=box))
    assert voc_boxes.read_split(folder, "test")[0].boxes == (Box(DOG, (9.5, -1, 128.4, 60.75), True),)
    assert voc_boxes.read_split(_folder(tmp_path / "b", SIZE), "test")[0].boxes == ()  # no object


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("", "utf-8-sig"),
        ('<?xml version="1.0" encoding="utf-16"?>', "utf-16"),
        ('<?xml version="1.0" encoding="latin-1"?>', "latin-1"),
    ],
)  # fmt: skip
def test_encodings(tmp_path: Path, declared: str, encoding: str) -> None:
    folder = _folder(tmp_path, "")
    text = f"{declared}<annotation><filename>Ä.jpg</filename>{SIZE}{_object()}</annotation>"
    (folder / "Annotations/a.xml").write_bytes(text.encode(encoding))
    assert voc_boxes.read_split(folder, "test")[0].boxes == (Box(DOG, XYXY, False),)


def test_lists(tmp_path: Path) -> None:
    folder = _folder(tmp_path, SIZE)
    _folder(tmp_path, SIZE, image="IMG 1.jpg")  # the whole line is a name; it comes before the second column

    def read(content: bytes) -> list[str]:
        (folder / "ImageSets/Main/test.txt").write_bytes(content)
        return voc_boxes.names(folder, "Main/test.txt")

    assert read(b"a") == ["a"]
    assert read(b"\xef\xbb\xbfa  1\r\n\r\nIMG 1\r\n  \r\nb -1\r\n") == ["a", "IMG 1", "b"]
    assert read("a\r\nb 0\r\n".encode("utf-16")) == ["a", "b"]
    for content, reason in ((b"\n", "names no image"), (b"a\nb\na\n", "names a 2 times")):
        with pytest.raises(UserError, match=f"test.txt {reason}"):
            read(content)


@pytest.mark.parametrize("image", ["a.JPG", "a.jpeg", "a.png", "b.v2.jpg", "IMG 1.jpg"])
def test_names_of_images(tmp_path: Path, image: str) -> None:
    folder = _folder(tmp_path, SIZE + _object(), image=image, listing=Path(image).stem.encode())
    (picture,) = voc_boxes.read_split(folder, "test")
    assert (picture.name, picture.file.name, len(picture.boxes)) == (Path(image).stem, image, 1)


def test_two_images_of_a_name(tmp_path: Path) -> None:
    folder = _folder(tmp_path, SIZE, image="a.png")
    _folder(tmp_path, SIZE, image="a.JPG")
    assert "JPEGImages: a.JPG and a.png have the same name" in _refusal(folder)
    _folder(tmp_path, SIZE, image="a.jpg")
    assert voc_boxes.read_split(folder, "test")[0].file.name == "a.jpg"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_object(name="Dog"), r"object 1 has the class 'Dog' (did you mean dog?), but VOC has only aeroplane, bicycle"),
        (_object() + _object(name="crane"), "object 2 has the class 'crane', but VOC has only"),
        (_object(name=""), "object 1 has the class ''"),
        (_object(box=""), "object 1 (dog) has no bndbox/xmin"),
        (_object(box=BOX.replace("60", "")), "object 1 (dog) has no bndbox/ymax"),
        (_object(box=BOX.replace("21", "x")), "object 1, ymin is 'x', not a number"),
        (_object(box=BOX.replace("21", "nan")), "object 1, ymin is 'nan', not a number"),
        (_object("<difficult>maybe</difficult>"), "difficult is 'maybe', not a number"),
        (_object(box=BOX.replace("11", "51")), "object 1 (dog) has its corners in the wrong order: xmin 51, ymin 21"),
        (_object(box=BOX.replace("50", "130")), "object 1 has the box 11, 21, 130, 60, which is not inside its image"),
        (_object(box=BOX.replace("11", "-3")), "object 1 has the box -3, 21, 50, 60, which is not inside"),
        ("<size><width>96</width><height>128</height></size>", "its size is 96x128, but a.jpg is 128x96 as its EXIF"),
        ("<size><width>640</width><height>480</height></size>", "its size is 640x480, but a.jpg is 128x96: "),
        ("<object>", "not an XML file of VOC"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, body: str, reason: str) -> None:
    folder = _folder(tmp_path, body)
    text = _refusal(folder)
    assert text.startswith(f"{folder / 'Annotations/a.xml'}: ") and reason in text
    if "class" in reason:
        assert "tvmonitor" in text


def test_the_others_are_counted_and_a_repaired_file_is_read_again(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _object(name="cup"), listing=b"a\nb\nc\nd\n")
    _folder(tmp_path, _object(), image="b.jpg", listing=b"a\nb\nc\nd\n")
    _folder(tmp_path, _object(), image="d.jpg", listing=b"a\nb\nc\nd\n")
    (folder / "JPEGImages/d.jpg").write_text("no image")
    assert "(2 more of the files for test.txt cannot be used)" in _refusal(folder)
    _folder(tmp_path, _object(), listing=b"a\nb\n")
    assert [len(picture.boxes) for picture in voc_boxes.read_split(folder, "test")] == [1, 1]
    (folder / "JPEGImages/b.jpg").unlink()
    assert "JPEGImages: there is no image b.jpg" in _refusal(folder)
