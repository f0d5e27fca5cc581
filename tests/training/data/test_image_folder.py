"""image-folder: folders in every arrangement, cut, natural, resident, and broken files."""

from __future__ import annotations

import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from training.cli import run
from training.config import DataConfig
from training.data import FileSplit, Split, build_dataset
from training.data.decode import evaluation_image, open_image, training_image
from training.errors import ConfigError


def names(split: FileSplit) -> set[str]:
    return set(split.paths)


def test_a_cut_of_the_training_folder(image_root, data_config):
    data = build_dataset(data_config("image-folder", image_root, validation_per_class=2), 0)
    assert data.class_names == ("ant", "bee", "cat", "dog")
    assert data.class_counts.tolist() == [12, 7, 4, 3]  # 12 * 4^(-k/3)
    assert torch.bincount(data.validation.labels, minlength=4).tolist() == [0, 2, 2, 2]
    assert len(data.test) == 12
    assert not names(data.train) & names(data.validation)
    assert all("/train/" in path for path in data.train.paths)
    assert all("/test/" in path for path in data.test.paths)
    for split in (data.train, data.validation, data.test):
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            assert path.split("/")[-2] == data.class_names[label]
    assert not data.resident
    assert data.channels == 3


def test_jpegs_of_cifar10_are_this_folder_in_memory_under_their_own_name(image_root, data_config):
    config = data_config("cifar10-jpeg-lt", image_root, validation_per_class=2)
    data = build_dataset(config, 0)
    same = data_config("image-folder", image_root, validation_per_class=2, resident=True)
    plain = build_dataset(same, 0)
    assert (data.name, data.resident) == ("cifar10-jpeg-lt", True)
    assert torch.equal(data.train.images, plain.train.images) and data.channels == 3
    assert data.class_counts.tolist() == [12, 7, 4, 3]


def test_a_val_folder_alone_is_the_test(image_root, data_config):
    (image_root / "test").rename(image_root / "val")
    data = build_dataset(data_config("image-folder", image_root, validation_per_class=0), 0)
    assert all("/val/" in path for path in data.test.paths)
    assert not data.has_validation


def test_a_val_folder_beside_a_test_folder_is_the_validation_split(image_root, data_config):
    shutil.copytree(image_root / "test", image_root / "val")
    data = build_dataset(data_config("image-folder", image_root), 0)
    assert all("/val/" in path for path in data.validation.paths)
    assert all("/test/" in path for path in data.test.paths)
    with pytest.raises(
        ConfigError, match=r"validation_per_class: expected the default null beside"
    ):
        build_dataset(data_config("image-folder", image_root, validation_per_class=2), 0)


@pytest.mark.parametrize("nested", [True, False])
def test_without_a_test_folder_one_is_held_out(image_root, data_config, nested):
    shutil.rmtree(image_root / "test")
    root = image_root if nested else image_root / "train"
    config = data_config("image-folder", root, 2, test_per_class=3, validation_per_class=1)
    data = build_dataset(config, 0)
    assert torch.bincount(data.test.labels).tolist() == [3] * 4
    assert torch.bincount(data.validation.labels).tolist() == [1] * 4
    assert data.class_counts.tolist() == [8, 6, 5, 4]
    assert not names(data.test) & (names(data.train) | names(data.validation))


def test_natural_imbalance(image_root, data_config):
    for number in range(9):
        (image_root / "train" / "dog" / f"{number:04}.jpg").unlink()
    config = data_config(
        "image-folder", image_root, None, imbalance_type="natural", validation_per_class=1
    )
    data = build_dataset(config, 0)
    assert data.class_counts.tolist() == [11, 11, 11, 2]
    assert data.imbalance_factor == 5.5


def test_resident_images_are_the_files(image_root, data_config):
    config = data_config("image-folder", image_root, resident=True, validation_per_class=2)
    data = build_dataset(config, 0)
    files = build_dataset(data_config("image-folder", image_root, validation_per_class=2), 0)
    assert isinstance(data.train, Split)
    assert data.train.images.shape == (26, 3, 16, 20)
    for image, path in zip(data.train.images, files.train.paths, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(path)))
    pixels = data.train.images.double().transpose(0, 1).flatten(1)
    assert torch.allclose(data.mean.double(), pixels.mean(1))


def test_resident_images_of_two_sizes(image_root, data_config, write_images):
    write_images(image_root / "test" / "dog", 1, size=(9, 9))
    with pytest.raises(ConfigError, match=r"dog/0000.jpg: expected 20 x 16 .*got 9 x 9"):
        build_dataset(data_config("image-folder", image_root, resident=True), 0)


def test_grey_and_transparent_images_become_rgb(image_root, data_config):
    folder = image_root / "train" / "ant"
    Image.new("L", (20, 16), 77).save(folder / "0000.png")
    Image.new("RGBA", (20, 16), (1, 2, 3, 4)).save(folder / "0001.png")
    config = data_config("image-folder", image_root, 1, resident=True, validation_per_class=0)
    data = build_dataset(config, 0)
    images = data.train.images
    assert (images == 77).flatten(1).all(1).sum() == 1
    assert (images == torch.tensor([1, 2, 3])[:, None, None]).flatten(1).all(1).sum() == 1


def _empty(path):
    path.write_bytes(b"")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def _text(path):
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(_empty, "empty one|0 bytes"), (_truncate, "truncated or corrupt"), (_text, "16 bytes")],
)
def test_a_broken_file_is_named_before_the_first_step(
    image_root, data_config, resident, damage, message
):
    path = image_root / "test" / "cat" / "0001.jpg"
    damage(path)
    with pytest.raises(ConfigError, match=message) as error:
        build_dataset(data_config("image-folder", image_root, resident=resident), 0)
    assert str(error.value).startswith(str(path))


def test_folders_that_make_no_sense(image_root, data_config):
    config = data_config("image-folder", image_root)
    (image_root / "test" / "dog").rename(image_root / "test" / "dogs")
    with pytest.raises(ConfigError, match="same class folders as for training, but 'dogs'"):
        build_dataset(config, 0)
    (image_root / "test" / "dogs").rename(image_root / "test" / "Dog")
    with pytest.raises(ConfigError, match=r"but 'Dog' .*\('dog' has other capitals"):
        build_dataset(config, 0)
    (image_root / "test" / "Dog").rename(image_root / "test" / "e\u0301te\u0301")
    (image_root / "train" / "dog").rename(image_root / "train" / "\xe9t\xe9")
    with pytest.raises(ConfigError, match=r"has other .* another Unicode form"):
        build_dataset(config, 0)
    (image_root / "train" / "eel").mkdir()
    with pytest.raises(ConfigError, match=r"eel: expected images \(.bmp"):
        build_dataset(config, 0)
    with pytest.raises(ConfigError, match=r"two or more classes, got 0 folder"):
        build_dataset(data_config("image-folder", image_root / "train" / "ant"), 0)


def test_a_folder_is_taken_as_it_is(image_root, data_config):
    config = data_config("image-folder", image_root, None, validation_per_class=0)
    data = build_dataset(config, 0)
    assert data.class_counts.tolist() == [12] * 4
    assert data.cut == ""
    cut = build_dataset(data_config("image-folder", image_root, 4, validation_per_class=0), 0)
    assert cut.cut.startswith("48 images found, kept 26 to train on; 22 are not used: ")
    with pytest.raises(
        ConfigError, match=r"at most 12 \(the training images of the smallest class"
    ):
        build_dataset(data_config("image-folder", image_root, 13, validation_per_class=0), 0)


def test_a_class_without_an_image_to_validate_or_test_on(image_root, data_config):
    shutil.copytree(image_root / "test", image_root / "val")
    shutil.rmtree(image_root / "val" / "bee")
    for path in (image_root / "test" / "cat").iterdir():
        path.unlink()
    with pytest.warns(UserWarning) as notes:
        data = build_dataset(data_config("image-folder", image_root), 0)
    said = [str(note.message) for note in notes]
    assert any("/val: no image of 1 of the classes, for instance 'bee'" in text for text in said)
    assert any("/test: no image of 1 of the classes, for instance 'cat'" in text for text in said)
    assert torch.bincount(data.validation.labels).tolist() == [3, 0, 3, 3]
    assert torch.bincount(data.test.labels).tolist() == [3, 3, 0, 3]


def test_capitals_of_the_parts_and_hidden_files_do_not_matter(image_root, data_config):
    (image_root / "train").rename(image_root / "Train")
    (image_root / "test").rename(image_root / "TEST")
    (image_root / "Train" / "ant" / "._0000.jpg").write_bytes(b"AppleDouble")
    data = build_dataset(data_config("image-folder", image_root, validation_per_class=1), 0)
    assert data.class_names == ("ant", "bee", "cat", "dog")
    assert all("/TEST/" in path for path in data.test.paths)


def test_trains_may_be_a_class(image_root, data_config):
    root = image_root / "train"
    (root / "cat").rename(root / "Train")
    config = data_config("image-folder", root, None, validation_per_class=1, test_per_class=1)
    assert build_dataset(config, 0).class_names == ("Train", "ant", "bee", "dog")
    (root / "dog").rename(root / "test")  # now Train is the split, whatever is in it
    with pytest.raises(ConfigError, match=r"train/Train: .* two or more classes, got 0 folder"):
        build_dataset(config, 0)


@pytest.mark.parametrize("to", ["nowhere", "itself"])
@pytest.mark.parametrize("link", ["train", "train/eel", "test/ant", "train/ant/new.png"])
def test_a_link_that_leads_nowhere_is_named(image_root, data_config, capsys, link, to):
    path = image_root / link
    if path.exists():
        path.rename(image_root / f".{path.name}")
    target = path.name if to == "itself" else to
    path.symlink_to(target)
    (image_root / "beside").symlink_to("nowhere")  # it is none of train, test and val
    arguments = ["data", "verify", "--dataset=image-folder", f"--data.root={image_root}"]
    assert run([*arguments, "--data.validation_per_class=1"]) == 2
    assert f"{path}: expected " in (error := capsys.readouterr().err)
    assert f"got: a link to '{target}': " in error
    with pytest.raises(ConfigError, match=f"{link}: expected .*got: a link to '{target}'"):
        build_dataset(data_config("image-folder", image_root, validation_per_class=1), 0)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    wide = np.array([[0, 255, 256, 0x7F80], [0x8000, 0xFF00, 0xFFFE, 0xFFFF]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        found = np.asarray(open_image(str(tmp_path / name)))
        assert np.array_equal(found, np.repeat((wide >> 8)[:, :, None], 3, 2))


def _write_tiff(path, data, bits, white):
    """One row of four values, as the baseline of TIFF has it; pillow does not write these kinds."""
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: white, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def test_twelve_bits_and_white_as_zero(tmp_path):
    _write_tiff(tmp_path / "a.tif", bytes.fromhex("0000 0f01 0fff"), 12, 1)  # 0, 15, 16, 4095
    _write_tiff(tmp_path / "b.tif", struct.pack("<4H", 0, 255, 256, 65535), 16, 0)
    for name, expected in (("a.tif", [0, 0, 1, 255]), ("b.tif", [255, 255, 254, 0])):
        assert np.asarray(open_image(str(tmp_path / name)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_known_range_are_refused(image_root, data_config, dtype):
    path = image_root / "train" / "ant" / "0000.tif"
    Image.fromarray(np.full((16, 20), 70000, dtype)).save(path)
    with pytest.raises(ConfigError, match="expected 8 or 16 bits a value, got") as error:
        build_dataset(data_config("image-folder", image_root), 0)
    assert str(error.value).startswith(str(path))


def test_an_image_of_one_pixel(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (1, 1), (1, 2, 3)).save(path)
    loading = DataConfig(image_size=8, resize=9)
    image = open_image(str(path))
    expected = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    assert torch.equal(evaluation_image(image, loading), expected)
    drawn = training_image(image, loading, np.random.default_rng(0), True)
    assert torch.equal(drawn, expected)
