"""`forethought extract`: files of any make, a model by name; what cannot be used is named, and nothing is made up."""

import json
import wave

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import forethought as ft
from forethought.identifying.account import parts_of
from forethought.jobs.listing import list_folder
from forethought.jobs.models import make_ready
from forethought.jobs.pictures import UnreadableError, read_picture
from forethought.jobs.samples import FileSamples
from forethought.jobs.sheets import list_sheet
from forethought.jobs.sounds import Clip, form_of, read_any, read_plain

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")
torch.set_num_threads(1)

# A small model of one's own, with its transform, as people have them.
MODEL = """
import torch, torchvision
from torch import nn
from torchvision import transforms as T

def model():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 7)
    )

def transform():
    return T.Compose([T.Resize(24), T.CenterCrop(24), T.ToTensor()])

def voice():
    torch.manual_seed(3)
    return nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 8, 64, stride=32), nn.ReLU(), nn.AdaptiveAvgPool1d(4),
                         nn.Flatten(), nn.Linear(32, 5))
"""
MINE = ("--model", "mine.py:model", "--transform", "mine.py:transform")


@pytest.fixture
def run(run_here, tmp_path):
    """Run the command line in a folder with a model in it."""
    (tmp_path / "mine.py").write_text(MODEL)
    return run_here


def picture(color, size=(40, 30)):
    """A picture of one color, with some grain that differs from picture to picture."""
    grain = np.random.default_rng(sum(color) + size[0]).integers(0, 40, (*size[::-1], 3))
    return Image.fromarray((np.array(color) * 0.8 + grain).clip(0, 255).astype(np.uint8))


def folder(root, classes=("cat", "dog", "owl"), each=6):
    """Pictures of many makes, one folder a class."""
    makes = [("RGB", ".jpg"), ("L", ".PNG"), ("RGBA", ".png"), ("CMYK", ".JPEG"), ("P", ".gif"), ("RGB", ".WebP")]
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for at in range(each):
            mode, suffix = makes[at % len(makes)]
            made = picture((60 * number, 200 - 60 * number, 10 * at), (30 + 7 * at, 60 - 5 * at))
            made.convert(mode).save(root / name / f"{at}{suffix}")
    return root


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_read_picture_gives_rgb_of_any_mode(tmp_path, mode):
    """Whatever a picture is kept as, the model is given 8-bit RGB, as PIL converts it."""
    made = picture((200, 100, 50)).convert(mode)
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr", "LA") else "a.png")
    made.save(path)
    got = read_picture(str(path))
    assert got.mode == "RGB"
    assert np.array_equal(np.asarray(got), np.asarray(made.convert("RGB")))


def test_read_picture_scales_16_bits(tmp_path):
    """A 16-bit picture is as bright as its 8-bit one: nothing is cut off at 255."""
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(gray * 257).save(tmp_path / "deep.png")
    got = np.asarray(read_picture(str(tmp_path / "deep.png")))
    assert np.array_equal(got, np.repeat(gray[..., None], 3, 2))


def test_read_picture_turns_as_exif_says(tmp_path):
    """A photograph taken upright is seen upright."""
    made = picture((10, 200, 90), (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    made.save(tmp_path / "a.png", exif=exif)
    assert read_picture(str(tmp_path / "a.png")).size == (20, 40)


@pytest.mark.parametrize(
    ("name", "content"),
    [("text.jpg", b"not a picture"), ("empty.png", b""), ("cut.jpg", None), ("cut.png", None)],
)
def test_read_picture_says_what_is_none(tmp_path, name, content):
    """Text, nothing, and a file that is cut off are told from a picture, and from a file that is not there."""
    path = tmp_path / name
    if content is None:
        picture((10, 20, 30), (90, 90)).save(path)
        content = path.read_bytes()[: len(path.read_bytes()) // 2]
    path.write_bytes(content)
    with pytest.raises(UnreadableError):
        read_picture(str(path))
    with pytest.raises(FileNotFoundError):
        read_picture(str(tmp_path / "none.png"))


def test_read_picture_refuses_pixels_without_a_range(tmp_path):
    """Nobody knows what is white in a picture of floats."""
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableError, match="range"):
        read_picture(str(tmp_path / "a.tiff"))


# -------------------------------------------------------------------------------------------------- sounds


def save_wav(path, samples, rate=8000, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
        raw = (whole + 128).astype(np.uint8) if width == 1 else whole.astype("<i8")
        raw = raw if width == 1 else raw.view(np.uint8).reshape(*raw.shape, 8)[..., :width]
        file.writeframes(np.ascontiguousarray(raw).tobytes())


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_read_plain_gives_what_soundfile_gives(tmp_path, width, channels):
    """Python's reading of a WAV file is that of a library which many use."""
    pytest.importorskip("soundfile")
    samples = np.sin(np.arange(400 * channels) / 9).reshape(400, channels) * np.array([1.0, 0.25])[:channels]
    save_wav(tmp_path / "a.wav", samples, width=width, channels=channels)
    ours, theirs = read_plain(str(tmp_path / "a.wav")), read_any(str(tmp_path / "a.wav"))
    assert form_of(str(tmp_path / "a.wav")).samples == 400
    assert np.abs(ours - theirs).max() < 1e-6
    assert np.abs(ours - samples.mean(1)).max() < 2.0 ** (2 - 8 * width) + 1e-7  # float32


def test_sounds_become_features(run, tmp_path):
    """A folder of WAV files and a model by import path give one row a file; sounds of other lengths need a word."""
    for name, pitch in (("low", 20), ("high", 3)):
        (tmp_path / "s" / name).mkdir(parents=True)
        for at in range(3):
            save_wav(tmp_path / "s" / name / f"{at}.wav", np.sin(np.arange(2000) / (pitch + at)))
    result = run("extract", "s", "--model", "mine.py:voice", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["features"][0]["shape"] == [32]
    save_wav(tmp_path / "s" / "low" / "long.wav", np.zeros(4000))
    assert "--seconds 0.50" in run("extract", "s", "--model", "mine.py:voice").err
    result = run("extract", "s", "--model", "mine.py:voice", "--json", "--seconds", "0.25")
    assert json.loads(result.out)["rows_computed"] == 1  # the others had this length before
    save_wav(tmp_path / "s" / "low" / "other.wav", np.zeros(2000), rate=16000)
    assert "16,000" in run("extract", "s", "--model", "mine.py:voice", "--seconds", "0.25").err
    (tmp_path / "s" / "low" / "other.wav").write_bytes(b"RIFF")
    (tmp_path / "s" / "low" / "no.wav").write_bytes(b"text")
    result = run("extract", "s", "--model", "mine.py:voice", "--seconds", "0.25", "--skip-bad")
    assert "2 left out" in result.out, result.err


# ------------------------------------------------------------------------------------------------- listing


def test_list_folder_is_that_of_torchvision(tmp_path):
    """Files and classes are those that torchvision's ImageFolder finds, in its order."""
    from torchvision.datasets import ImageFolder

    root = folder(tmp_path / "p")
    (root / "owl" / "deep").mkdir()
    picture((1, 2, 3)).save(root / "owl" / "deep" / "x.jpg")
    theirs = ImageFolder(root, is_valid_file=lambda path: not path.endswith((".txt", ".DS_Store")))
    (root / "read me.txt").write_text("hello")
    (root / "cat" / ".DS_Store").write_text("hello")
    ours = list_folder(root)
    assert sorted(ours.paths) == sorted(path for path, _ in theirs.samples)
    assert dict(zip(ours.paths, ours.columns["label"], strict=True)) == {
        path: theirs.classes[label] for path, label in theirs.samples
    }
    assert len(ours.left_alone) == 2


def test_list_folder_knows_train_and_val(tmp_path):
    """Folders of these names are no classes but parts."""
    folder(tmp_path / "p" / "train", each=3)
    folder(tmp_path / "p" / "Val", each=2)
    found = list_folder(tmp_path / "p")
    assert (found.splits.count("train"), found.splits.count("val")) == (9, 6)
    assert set(found.columns["label"]) == {"cat", "dog", "owl"}


def test_list_folder_ends_at_a_link_to_itself(tmp_path):
    """A link to a folder above is not followed; one to another folder is."""
    root = folder(tmp_path / "p", each=2)
    (root / "cat" / "up").symlink_to(root)
    (root / "ape").symlink_to(folder(tmp_path / "q", each=1) / "dog")
    assert sorted(set(list_folder(root).columns["label"])) == ["ape", "cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "names of columns"),
        ("path,label\n", "lines below"),
        ("name,label\na.png,1\n", "--paths name"),
        ("path,label\na.png,1\n,2\n", "line 3"),
        ("path,label\na.png,1,2\n", "3 in line 2"),
        ("path,path\na.png,1\n", "name of its own"),
        ("path,label\na.png,1\nb.wav,1\n", "sounds only"),
        ("path,label\na.xyz,1\n", "line 2"),
    ],
)
def test_list_sheet_says_what_is_wrong_in_which_line(tmp_path, content, says):
    """A table that cannot be used is refused by the line at fault."""
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ft.ForethoughtError, match=says):
        list_sheet(tmp_path / "a.csv")


def test_list_sheet_reads_what_spreadsheets_write(tmp_path):
    """A mark of the encoding, semicolons, quoted cells and empty lines are as they should be."""
    (tmp_path / "a.csv").write_bytes('\ufeffName;Path\r\n"Ä;b";x/1.PNG\r\n\r\nc;/2.png\r\n'.encode())
    found = list_sheet(tmp_path / "a.csv")
    assert found.columns == {"Name": ["Ä;b", "c"]}
    assert found.paths == [str(tmp_path / "x/1.PNG"), "/2.png"]
    assert found.lines == [2, 4]


def test_list_sheet_reads_parquet(tmp_path):
    """A Parquet file is the same table."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"file": ["a.png", "b.png"], "age": [1.5, None]}), tmp_path / "a.parquet")
    assert list_sheet(tmp_path / "a.parquet").columns == {"age": [1.5, None]}


# ------------------------------------------------------------------------------------------------- extract


@pytest.mark.parametrize("kind", ["torchvision:resnet18", "timm:test_resnet", "sounds"])
def test_files_are_known_again_without_reading_them(tmp_path, kind):
    """The data set shows all that its samples follow from, so a store need not decode them to know them."""
    if kind == "sounds":
        samples = FileSamples([], read_plain, Clip(8), torch.zeros(8))
    else:
        pytest.importorskip("timm")
        prepare = make_ready(kind, "random").prepare
        samples = FileSamples([], read_picture, prepare, torch.zeros(1))
    assert parts_of(samples, default_collate, None) is not None


def test_features_are_those_of_the_model_on_its_own_preparation(run, tmp_path):
    """A row is what the model says of the file, prepared by the model's own transform, to the last bit."""
    from torchvision.models import SqueezeNet1_1_Weights

    root = folder(tmp_path / "p", each=2)
    result = run("extract", "p", "--model", "squeezenet1_1", "--weights", "random", "--batch-size", "6")
    assert result.code == 0, result.err
    assert "everything but 'classifier.1'" in result.out
    assert "crop_size=[224]" in result.out
    assert "6 pictures of 3 classes: cat 2, dog 2, owl 2" in result.out
    model = make_ready("squeezenet1_1", "random").model
    prepare, paths = SqueezeNet1_1_Weights.DEFAULT.transforms(), list_folder(root).paths
    batch = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    model.requires_grad_(False)
    live = model.features(batch)
    again = run("extract", "p", "--model", "torchvision:squeezenet1_1", "--weights", "random", "--json")
    assert json.loads(again.out)["rows_computed"] == 0
    table = next((tmp_path / "thoughts" / "tables").glob("*/*.safetensors"))
    from safetensors.numpy import load_file

    rows = next(value for value in load_file(table).values() if value.dtype == np.float32)
    assert rows[0].size == 512 * 13 * 13
    assert {row.tobytes() for row in rows} == {row.contiguous().numpy().tobytes() for row in live}


def test_bad_files_are_named_all_at_once_and_left_out_when_asked(run, tmp_path):
    """Files that cannot be read stop the work, by name, and cost nothing of it; --skip-bad counts them."""
    root = folder(tmp_path / "p", each=3)
    (root / "cat" / "text.jpg").write_text("hello")
    (root / "owl" / "zero.png").write_bytes(b"")
    result = run("extract", "p", *MINE)
    assert result.code == 1
    assert result.err.count("\n") == 1
    for part in ("2 files of 11", "text.jpg", "zero.png", "--skip-bad"):
        assert part in result.err
    result = run("extract", "p", *MINE, "--skip-bad", "--json")
    facts = json.loads(result.out)
    assert (facts["rows"], facts["rows_computed"], len(facts["bad"])) == (9, 0, 2)
    assert "2 left out" in run("extract", "p", *MINE, "--skip-bad").out
    picture((9, 9, 9)).save(root / "cat" / "text.jpg")  # mended
    facts = json.loads(run("extract", "p", *MINE, "--skip-bad", "--json").out)
    assert (facts["rows"], facts["rows_computed"], len(facts["bad"])) == (10, 1, 1)


def test_extract_reads_a_table_and_refuses_what_is_not_there(run, tmp_path):
    """A line that names no file is said, with its number; other lines go on if asked."""
    root = folder(tmp_path / "p", each=2)
    (tmp_path / "t.csv").write_text("path,age\np/cat/0.jpg,3\np/cat/none.jpg,4\np/dog/0.jpg,5\n")
    result = run("extract", "t.csv", *MINE)
    assert result.code == 1
    assert "none.jpg" in result.err
    assert "line 3" in result.err
    facts = json.loads(run("extract", "t.csv", *MINE, "--skip-bad", "--json").out)
    assert facts["rows"] == 2
    assert facts["columns"] == ["age"]
    assert root.is_dir()


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("transform", "says"),
    [
        ("T.Compose([T.Resize(24), T.ToTensor()])", "(3, 24, 24) as of other files"),
        (
            "T.Compose([T.CenterCrop(24), T.ToTensor(), lambda x: x / 0 if x.max() == 0 else x[:, :, :5].bmm(x)])",
            "Expected size",
        ),
    ],
)
def test_the_file_at_fault_is_named(run, tmp_path, transform, says, workers):
    """What cannot be prepared, or comes out in another size, is named, whichever process read it."""
    folder(tmp_path / "p", each=2)
    (tmp_path / "other.py").write_text(f"from torchvision import transforms as T\ntransform = lambda: {transform}\n")
    result = run("extract", "p", "--model", "mine.py:model", "--transform", "other.py:transform", "--workers", workers)
    assert result.code == 1
    assert result.err.startswith("Error: Cannot prepare 'p")
    assert says in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "--model", "resnet18"), "nothing of this name"),
        (("mine.py", "--model", "resnet18", "--weights", "random"), "file of another kind"),
        (("empty", "--model", "resnet18", "--weights", "random"), "no files"),
        (("other", "--model", "resnet18", "--weights", "random"), "1 other files"),
        (("p", "--model", "resnet81"), "Did you mean torchvision:resnet18"),
        (("p", "--model", "resnet18"), "--weights random"),
        (("p", "--model", "resnet18", "--weights", "V9"), "IMAGENET1K_V1"),
        (("p", "--model", "resnet18", "--weights", "none.pth"), "no 'none.pth'"),
        (("p", "--model", "mine.py:model"), "--transform resnet18"),
        (("p", "--model", "mine.py:model", "--transform", "mine.py:model"), "Cannot prepare"),
        (("p", "--model", "mine.py:voice", "--transform", "mine.py:transform"), "Cannot run Sequential"),
        (("p", *MINE, "--at", "nine"), "nine"),
    ],
)
def test_extract_says_in_one_line_what_is_wrong(run, tmp_path, arguments, says, monkeypatch):
    """What cannot be used is refused before anything is computed, in one line with the way out."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder(tmp_path / "p", each=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    result = run("extract", *arguments)
    assert result.code == 1
    assert says in result.err
    assert result.err.count("\n") == 1


def test_weights_that_lie_on_this_machine_are_used_and_run_nothing(run, tmp_path, monkeypatch):
    """Trained weights are taken from torch's own cache; a file of weights that would run code is refused."""
    import torchvision

    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    trained = torchvision.models.resnet18()
    torch.save(trained.state_dict(), checkpoints / "resnet18-f37072fd.pth")
    ready = make_ready("resnet18")
    assert all(torch.equal(a, b) for a, b in zip(ready.model.parameters(), trained.parameters(), strict=True))
    assert ready.weights == "trained weights ResNet18_Weights.IMAGENET1K_V1"
    torch.save({"a": print}, checkpoints / "resnet18-f37072fd.pth")
    with pytest.raises(ft.ForethoughtError, match="tensors by name"):
        make_ready("resnet18")
    torch.save(trained.state_dict(), tmp_path / "mine.pt")
    given = make_ready("resnet18", str(tmp_path / "mine.pt"))
    assert torch.equal(given.model.fc.weight, trained.fc.weight)


def test_a_model_of_timm_brings_its_own_preparation(run, tmp_path):
    """A bare name that torchvision does not know is timm's, prepared as timm says."""
    pytest.importorskip("timm")
    folder(tmp_path / "p", each=1)
    result = run("extract", "p", "--model", "test_resnet", "--weights", "random", "--json")
    facts = json.loads(result.out)
    assert facts["model"] == "timm:test_resnet"
    assert "CenterCrop(size=(160, 160))" in facts["prepared"]
    assert "--weights random" in run("extract", "p", "--model", "timm:test_resnet").err


def test_a_model_of_transformers_brings_its_own_processor(run, tmp_path):
    """A folder that transformers saved is a model with its processor; layers that it lacks are not frozen."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    folder(tmp_path / "p", each=1)
    result = run("extract", "p", "--model", "transformers:vit", "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["features"][0]["shape"] == [16]
    assert facts["weights"] == "trained weights of vit, which lack 2 tensors: these are left to be trained"
    assert json.loads(run("extract", "p", "--model", "transformers:vit", "--json").out)["rows_computed"] == 0
    assert "--download" in run("extract", "p", "--model", "transformers:nobody/nothing").err
