"""Data set formats: small examples of each, with their known irregularities, around real clips."""

import csv
import json
import os
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import openpyxl
import pytest

from extract.__main__ import main
from extract.config import Layout
from extract.datasets.detect import detect_format, read_dataset, sample_clips
from extract.datasets.index import DatasetIndex
from features.manifest import Clip
from features.store.store import FeatureStore
from tests.support.clips import face_frames, looped, write_video


@pytest.fixture(scope="module")
def clip_file(real_clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A clip of 2 s with a face."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = looped(face_frames(real_clips["carphone"], 10, 176, 144), 20)
    return write_video(path, frames, 10, options={"preset": "ultrafast"}).read_bytes()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def daisee(clip_file: bytes, tmp_path: Path) -> Path:
    """A DAiSEE folder with a trailing space in the last header name, a BOM, a wrong extension, and unpaired
    videos and labels."""
    root = tmp_path / "DAiSEE"
    for split, subject, clip, suffix in (
        ("Train", "110001", "1100011002", ".avi"),
        ("Train", "110001", "1100011003", ".mp4"),  # .avi in the table
        ("Train", "110002", "1100021004", ".avi"),  # no label
        ("Validation", "400001", "4000011001", ".avi"),
        ("Test", "500001", "5000011001", ".avi"),
    ):
        put(root / "DataSet" / split / subject / clip / (clip + suffix), clip_file)
    header = "ClipID,Boredom,Engagement,Confusion,Frustration \r\n"
    tables = {
        "Train": "1100011002.avi,0,2,0,0\r\n1100011003.avi,1,3,0,0\r\n9999999999.avi,0,0,0,0\r\n",
        "Validation": "4000011001.avi,0,1,0,0\r\n",
        "Test": "5000011001.avi,0,2,1,3\r\n",
        "All": "1100011002.avi,3,0,3,3\r\n5000011001.avi,0,0,0,0\r\n",
    }
    for name, lines in tables.items():
        bom = "\ufeff" if name == "Train" else ""
        put(root / "Labels" / f"{name}Labels.csv", (bom + header + lines).encode())
    return root


def by_stem(index: DatasetIndex) -> dict[str, Clip]:
    return {clip.path.stem + clip.clip_id[clip.clip_id.index("#") :]: clip for clip in index.manifest.clips}


def test_daisee_is_read_with_its_inconsistencies(daisee: Path) -> None:
    index = read_dataset(daisee)
    assert index.layout == "daisee"
    clips = by_stem(index)
    assert clips.keys() == {"1100011002#0", "1100011003#0", "4000011001#0", "5000011001#0"}
    assert clips["1100011002#0"].labels == {
        "Boredom": "0",
        "Engagement": "2",
        "Confusion": "0",
        "Frustration": "0",
    }
    assert clips["5000011001#0"].labels["Frustration"] == "3"
    assert clips["1100011003#0"].path.suffix == ".mp4"
    assert [clips[name].split for name in sorted(clips)] == ["train", "train", "val", "test"]
    assert clips["1100011003#0"].subject == "110001"
    assert index.unpaired_videos == ("DataSet/Train/110002/1100021004/1100021004.avi",)
    assert index.unpaired_labels == ("Train: 9999999999.avi",)
    assert index.notes == ()


def test_a_second_file_of_one_daisee_clip_is_counted(daisee: Path, clip_file: bytes) -> None:
    put(daisee / "DataSet" / "Train" / "110001" / "1100011003" / "1100011003.avi", clip_file)
    index = read_dataset(daisee)
    assert len(index.manifest.clips) == 4
    assert index.unpaired_videos[0] == "DataSet/Train/110001/1100011003/1100011003.mp4"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_subject_folders_may_be_links(daisee: Path, tmp_path: Path) -> None:
    train_folder = daisee / "DataSet" / "Train"
    wanted = read_dataset(daisee)
    (train_folder / "110001").rename(tmp_path / "110001")
    (train_folder / "110001").symlink_to(tmp_path / "110001", target_is_directory=True)
    assert read_dataset(daisee) == wanted


def test_daisee_error_names_missing_columns(daisee: Path) -> None:
    put(daisee / "Labels" / "TestLabels.csv", b"ClipID,Boredom\n1,2\n")
    with pytest.raises(ValueError, match="no column 'Engagement'"):
        read_dataset(daisee)


def engagenet_files(root: Path, clip_file: bytes) -> None:
    for folder, name in (
        ("Train", "subject_7_ab12_vid_0_0.mp4"),
        ("Train", "subject_7_ab12_vid_0_1.mp4"),
        ("Train", "subject_9_cd34_vid_0_0.mp4"),
        ("Train", "subject_9_cd34_vid_0_9.mp4"),
        ("Validation", "subject_12_ef_vid_1_0.mp4"),
    ):
        put(root / folder / name, clip_file)


ENGAGENET_ROWS = [
    ("subject_7_ab12_vid_0_0.mp4", "Highly-Engaged"),
    ("subject_7_ab12_vid_0_1.mp4", "SNP(Subject Not Present)"),
    ("subject_9_cd34_vid_0_0.mp4", "Not-Engaged"),
    ("subject_99_no_vid_0_0.mp4", "Engaged"),
]


def check_engagenet(index: DatasetIndex) -> None:
    assert index.layout == "engagenet"
    clips = by_stem(index)
    assert {name: (clip.labels["label"], clip.subject, clip.split) for name, clip in clips.items()} == {
        "subject_7_ab12_vid_0_0#0": ("Highly-Engaged", "7", "train"),
        "subject_9_cd34_vid_0_0#0": ("Not-Engaged", "9", "train"),
        "subject_12_ef_vid_1_0#0": ("Barely-engaged", "12", "val"),
    }
    assert index.unpaired_videos == ("Train/subject_9_cd34_vid_0_9.mp4",)
    assert index.unpaired_labels == ("subject_99_no_vid_0_0",)
    assert index.dropped == (("subject not present", 1),)
    assert "validation is used as test" in index.notes[0]


def test_engagenet_is_read_from_spreadsheets(clip_file: bytes, tmp_path: Path) -> None:
    """With the unnamed index column that pandas leaves."""
    engagenet_files(tmp_path, clip_file)
    validation = [("subject_12_ef_vid_1_0.mp4", "Barely-engaged")]
    for name, rows in (("train", ENGAGENET_ROWS), ("validation", validation)):
        book = openpyxl.Workbook()
        book.active.append([None, "chunk", "label"])
        for index, row in enumerate(rows):
            book.active.append([index, *row])
        book.save(tmp_path / f"{name}_engagement_labels.xlsx")
    put(tmp_path / "~$train_engagement_labels.xlsx", b"Excel has it open")
    put(tmp_path / "._train_engagement_labels.xlsx", b"\0\5\x16\7")
    check_engagenet(read_dataset(tmp_path))


def test_engagenet_is_read_from_the_one_csv(clip_file: bytes, tmp_path: Path) -> None:
    engagenet_files(tmp_path, clip_file)
    with open(tmp_path / "final_labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["chunk", "label"])
        writer.writerows([*ENGAGENET_ROWS, ("subject_12_ef_vid_1_0.mp4", "Barely-engaged")])
    lists = {"train.txt": "subject_7_ab12_vid_0_0.mp4\nsubject_9_cd34_vid_0_0.mp4\n"}
    lists["valid.txt"] = "subject_12_ef_vid_1_0.mp4\n"
    for name, text in lists.items():
        put(tmp_path / name, text.encode())
    check_engagenet(read_dataset(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'chunk,label\na.mp4,Engaged\n"b.mp4,Engaged\nc.mp4,Engaged\n', "final_labels.csv line 4: "),
        ("chunk,label\na.mp4,caf\xe9\n".encode("latin-1"), "final_labels.csv line 2 is not UTF-8"),
        (b"", "final_labels.csv is empty"),
    ],
)
def test_damaged_label_table_is_an_error_with_its_line(
    clip_file: bytes, tmp_path: Path, content: bytes, message: str
) -> None:
    """Labels after an unmatched quote must not be lost without a message."""
    engagenet_files(tmp_path, clip_file)
    put(tmp_path / "final_labels.csv", content)
    with pytest.raises(ValueError, match=message):
        read_dataset(tmp_path)


def test_label_table_may_use_semicolons(clip_file: bytes, tmp_path: Path) -> None:
    engagenet_files(tmp_path, clip_file)
    lines = [("chunk", "label"), *ENGAGENET_ROWS, ("subject_12_ef_vid_1_0.mp4", "Barely-engaged")]
    put(tmp_path / "final_labels.csv", "\r\n".join(map(";".join, lines)).encode())
    put(tmp_path / "valid.txt", b"subject_12_ef_vid_1_0.mp4\n")
    check_engagenet(read_dataset(tmp_path))


def test_engagenet_with_labelled_test_clips_keeps_its_three_splits(clip_file: bytes, tmp_path: Path) -> None:
    """The lists define the split of each clip, even if the folder differs."""
    engagenet_files(tmp_path, clip_file)
    put(tmp_path / "Test" / "subject_21_gh_vid_0_0.mp4", clip_file)
    with open(tmp_path / "final_labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("chunk", "label"), *ENGAGENET_ROWS, ("subject_21_gh_vid_0_0.mp4", "Engaged")])
    put(tmp_path / "train.txt", b"subject_7_ab12_vid_0_0.mp4\n")
    put(tmp_path / "test.txt", b"subject_21_gh_vid_0_0.mp4\nsubject_9_cd34_vid_0_0.mp4\n")
    index = read_dataset(tmp_path)
    assert {name: clip.split for name, clip in by_stem(index).items()} == {
        "subject_7_ab12_vid_0_0#0": "train",
        "subject_9_cd34_vid_0_0#0": "test",
        "subject_21_gh_vid_0_0#0": "test",
    }
    assert not any("is used as test" in note for note in index.notes)


def test_damaged_spreadsheet_is_an_error(clip_file: bytes, tmp_path: Path) -> None:
    engagenet_files(tmp_path, clip_file)
    put(tmp_path / "train_engagement_labels.xlsx", b"PK nonsense")
    with pytest.raises(ValueError, match=r"not an \.xlsx"):
        read_dataset(tmp_path)


@pytest.fixture
def aihub(real_clips: dict[str, Path], tmp_path: Path) -> Path:
    """40-second videos with segments 0, 1 and 3 labelled; Hangul decomposed as macOS writes it."""
    top = "109.학습태도 및 성향 관찰 데이터/3.개방데이터/1.데이터"
    root = tmp_path / unicodedata.normalize("NFD", top)
    frames = face_frames(real_clips["carphone"], 30, 176, 144)
    fast = {"preset": "ultrafast"}
    names = {"Training": "02-04-78--1-20-23082700000020-01", "Validation": "02-04-79--1-20-23082700000021-01"}
    for split, name in names.items():
        letter = split[0]
        videos = root / split / unicodedata.normalize("NFD", "01.원천데이터") / f"{letter}S_20_04"
        labels = root / split / unicodedata.normalize("NFD", "02.라벨링데이터") / f"{letter}L_20_04"
        videos.mkdir(parents=True)
        write_video(videos / f"{name}.mp4", looped(frames, 200), 5, options=fast)
        for k, category in ((0, 1), (1, 2), (3, 3)):
            content = {"이미지": {"category": {"id": category, "name": " 집중 하지 않음 "}}}
            text = json.dumps(content, ensure_ascii=False)
            put(labels / f"{name}-{k}.json", text.encode())
    put(labels / "02-04-80--1-20-23082700000022-01-5.json", b'{"\xec\x9d\xb4": 1}')
    put(labels / "02-04-81--1-20-23082700000023-01-5.json", text.encode())
    write_video(videos / "02-04-99--1-20-23082700000099-01.mp4", frames[:5], 5, options=fast)
    return tmp_path


def test_aihub_is_read_by_segment(aihub: Path) -> None:
    index = read_dataset(aihub, subject_regex=r"\d\d-\d\d-(\d\d)--")
    assert index.layout == "aihub"
    clips = index.manifest.clips
    assert Counter(clip.labels["label"] for clip in clips) == {
        "concentrating": 2,
        "not_concentrating": 2,
        "drowsy": 2,
    }
    assert [(clip.start_s, clip.end_s) for clip in clips[:3]] == [(0, 10), (10, 20), (30, 40)]
    assert {(clip.subject, clip.split) for clip in clips} == {("78", "train"), ("79", "val")}
    assert len(index.unpaired_videos) == 1
    assert "02-04-99" in index.unpaired_videos[0]
    assert len(index.unpaired_labels) == 1
    assert "02-04-81" in index.unpaired_labels[0]
    assert len(index.manifest.problems) == 1
    assert "02-04-80" in index.manifest.problems[0].clip_id
    assert any("5 labels differ from the class of their folder" in note for note in index.notes)
    assert any("validation is used as test" in note for note in index.notes)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_aihub_on_several_disks_is_found_by_its_links(aihub: Path, tmp_path_factory) -> None:
    wanted = read_dataset(aihub)
    for folder in [*aihub.rglob("Training"), *aihub.rglob("VS_20_04"), *aihub.rglob("VL_20_04")]:
        disk = tmp_path_factory.mktemp("disk") / folder.name
        folder.rename(disk)
        folder.symlink_to(disk, target_is_directory=True)
    assert detect_format(aihub) == "aihub"
    assert read_dataset(aihub) == wanted


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_names_that_are_not_utf8_are_problems_in_every_layout(
    daisee: Path, aihub: Path, clip_file: bytes, tmp_path: Path
) -> None:
    """All messages can be printed."""
    name = os.fsdecode(b"caf\xe9")
    engagenet = tmp_path / "EngageNet"
    engagenet_files(engagenet, clip_file)
    put(engagenet / "final_labels.csv", b"chunk,label\nsubject_7_ab12_vid_0_0.mp4,Engaged\n")
    put(engagenet / "Train" / f"{name}.mp4", clip_file)
    put(daisee / "DataSet" / "Train" / "110001" / name / f"{name}.avi", clip_file)
    root = next(aihub.rglob("Training"))
    videos, labels = sorted(root.iterdir(), key=lambda folder: unicodedata.normalize("NFC", folder.name))
    put(videos / f"{name}.mp4", clip_file)
    put(labels / f"{name}-0.json", next(labels.rglob("*.json")).read_bytes())
    put(labels / f"{name}.json", b"{}")
    for folder, count in ((daisee, 1), (engagenet, 1), (root.parent, 3)):
        index = read_dataset(folder)
        assert len(index.manifest.problems) == count
        assert r"caf\udce9" in index.manifest.problems[-1].clip_id
        assert index.manifest.problems[-1].reason == "its name is not UTF-8: rename it"
        for text in map(str, (index.manifest.problems, index.unpaired_videos, index.unpaired_labels)):
            text.encode()


def test_folders_above_the_data_do_not_set_the_split(aihub: Path, tmp_path: Path) -> None:
    """Users keep their data in folders of any name."""
    below = tmp_path / "training" / "Validation" / "data"
    below.mkdir(parents=True)
    for item in list(aihub.iterdir()):
        if item.name != "training":
            item.rename(below / item.name)
    assert Counter(clip.split for clip in read_dataset(below).manifest.clips) == {"train": 3, "val": 3}


def test_aihub_without_subjects_gives_a_warning(aihub: Path) -> None:
    notes = read_dataset(aihub).notes
    assert any("no clip has a subject" in note for note in notes)
    with pytest.raises(ValueError, match="matches no path"):
        read_dataset(aihub, subject_regex="nobody")
    with pytest.raises(ValueError, match="not a regular expression"):
        read_dataset(aihub, subject_regex="(")


@pytest.mark.parametrize(
    ("regex", "subjects"),
    [
        (r"S(\d+)_|P(\d+)_|x", ["7", "12", ""]),
        (r"S(\d+)_", ["", "12", ""]),
        (r"[SP]\d+", ["P7", "S12", ""]),
    ],
)
def test_first_matching_group_is_the_subject(tmp_path: Path, regex: str, subjects: list[str]) -> None:
    """The whole match if there are no groups; no subject if nothing matches."""
    for name in ("P7_a.mp4", "S12_a.mp4", "x.mp4"):
        put(tmp_path / "engaged" / name, b"x")
    clips = read_dataset(tmp_path, subject_regex=regex).manifest.clips
    assert [clip.subject for clip in clips] == subjects


@pytest.mark.slow
def test_aihub_segments_become_rows_of_one_decoding(aihub: Path, tmp_path: Path) -> None:
    argv = ["--data", str(aihub), "--out", str(tmp_path / "s.zarr"), "--weights", "random"]
    code = main([*argv, "--geometry", "off", "--workers", "0", "--subject-regex", r"-(\d\d)--"])
    assert code == 1  # the label that cannot be read
    store = FeatureStore.open(tmp_path / "s.zarr")
    table = store.table()
    assert sorted(table.start_s) == [0, 0, 10, 10, 30, 30]
    assert (table.state == 1).all()
    times = store.read_frames()[:, 0, 0]
    assert times == pytest.approx(table.start_s, abs=0.21)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("DataSet/Train/1/1/1.avi", "Labels/TrainLabels.csv"), "daisee"),
        (("Train/subject_1_a.mp4", "train_engagement_labels.xlsx"), "engagenet"),
        (("x/Training/02.라벨링데이터/TL/a-0.json",), "aihub"),
        (("engaged/a.mp4", "distracted/b.mp4"), "folder"),
        (("labels.csv", "a.mp4"), "csv"),
    ],
)
def test_layouts_are_recognised(tmp_path: Path, files: tuple[str, ...], expected: Layout) -> None:
    for name in files:
        put(tmp_path / name, b"x")
    assert detect_format(tmp_path) == expected


VIDEOS = ("a.mp4", "b.mp4", "c.mp4")


def spreadsheet(path: Path, rows: list[list[object]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def in_tables(root: Path, kind: str) -> None:
    """The labels of VIDEOS in a table of this kind, as researchers have them."""
    people = {"a.mp4": "p1", "b.mp4": "p1", "c.mp4": "p2"}
    rows = [[name, "yes" if name != "b.mp4" else "no", person] for name, person in people.items()]
    if kind == "xlsx":
        spreadsheet(root / "labels.xlsx", [["file", "class", "person", None], *rows, [None, None, None]])
    elif kind == "jsonl":
        names = ("file_name", "label", "subject")
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        put(root / "metadata.jsonl", "\n".join(lines).encode())
    elif kind == "tabs":
        put(
            root / "annotations.tsv",
            "\n".join("\t".join(row) for row in [["video", "y", "user"], *rows]).encode(),
        )
    elif kind == "utf-16":
        put(
            root / "labels.csv",
            "\n".join(";".join(row) for row in [["PATH", "Target", "ID"], *rows]).encode("utf-16"),
        )
    elif kind == "split folders":  # Hugging Face's VideoFolder
        for split, part in (("train", rows[:2]), ("test", rows[2:])):
            lines = [["file_name", "label", "subject"], *part]
            put(root / split / "metadata.csv", "\n".join(",".join(row) for row in lines).encode())


@pytest.mark.parametrize("kind", ["xlsx", "jsonl", "tabs", "utf-16", "split folders"])
def test_a_folder_with_a_table_needs_no_option(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    in_tables(tmp_path, kind)
    for name in VIDEOS:
        folder = tmp_path / ("test" if name == "c.mp4" else "train") if kind == "split folders" else tmp_path
        put(folder / name, b"x")
    put(tmp_path / "notes.csv", "day,날씨\n1,비\n".encode("cp949"))
    index = read_dataset(tmp_path)
    assert "CP949" not in capsys.readouterr().err, "of a table that is not used"
    assert (index.layout, index.manifest.problems) == ("csv", ())
    found = {clip.path.name: (clip.labels["label"], clip.subject) for clip in index.manifest.clips}
    assert found == {"a.mp4": ("yes", "p1"), "b.mp4": ("no", "p1"), "c.mp4": ("yes", "p2")}
    splits = {clip.clip_id: clip.split for clip in index.manifest.clips}
    if kind == "split folders":
        assert splits == {"train/a.mp4#0": "train", "train/b.mp4#0": "train", "test/c.mp4#0": "test"}
    else:
        assert set(splits.values()) == {""}


def test_columns_are_named_by_an_option_or_the_error_says_how(tmp_path: Path) -> None:
    table = put(tmp_path / "rows.csv", b"clip file,Rating\na.mp4,low\nb.mp4,high\n")
    for name in ("a.mp4", "b.mp4"):
        put(tmp_path / name, b"x")
    with pytest.raises(ValueError, match=r"no column 'path'.*--columns path=YOURS"):
        read_dataset(table)
    index = read_dataset(table, columns="path=clip file, label=Rating")
    assert [clip.labels for clip in index.manifest.clips] == [{"label": "low"}, {"label": "high"}]
    for columns, message in (
        ("path=video,label=Rating", r"no column 'video': its header is clip file,Rating"),
        ("path", "must be OURS=YOURS"),
        ("path=clip file,label=clip file", "no column 'path'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_dataset(table, columns=columns)
    with pytest.raises(ValueError, match="names the columns of a table"):
        read_dataset(put(tmp_path / "d" / "x" / "a.mp4", b"x").parents[1], columns="path=video")


def test_two_tables_of_clips_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    for name in ("first.csv", "second.csv"):
        put(tmp_path / name, b"video,class\na.mp4,x\n")
    with pytest.raises(ValueError, match=r"several tables.*--data .*first\.csv or second\.csv"):
        read_dataset(tmp_path)
    for name in ("metadata.csv", "labels.csv"):
        put(tmp_path / name, f"path,label\na.mp4,of {name}\n".encode())
    put(tmp_path / "a.mp4", b"x")
    (clip,) = read_dataset(tmp_path).manifest.clips
    assert clip.labels == {"label": "of labels.csv"}


def test_wrong_layout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        read_dataset(tmp_path / "nothing")
    file = put(tmp_path / "labels.csv", b"path,label\n")
    with pytest.raises(ValueError, match="needs the data set's folder"):
        read_dataset(file, "daisee")


def test_a_sample_is_balanced_and_the_same_each_time() -> None:
    """90 clips of one class and 10 of the other, three subjects: a sample of 20 has 10 of each class."""
    clips = [
        Clip(f"{i}#0", Path(f"{i}"), subject="abc"[i % 3], split="train", labels={"label": "10"[i < 10]})
        for i in range(100)
    ]
    chosen = sample_clips(clips, 20)
    assert Counter(clip.labels["label"] for clip in chosen) == {"0": 10, "1": 10}
    assert sorted(Counter(clip.subject for clip in chosen).values())[0] >= 6
    assert [clip.clip_id for clip in chosen] == [clip.clip_id for clip in sample_clips(clips, 20)]
    assert chosen == [clip for clip in clips if clip in chosen]
    assert len(sample_clips(clips, 1000)) == 100
    with pytest.raises(ValueError, match=re.escape(f"{clips[3].clip_id}, 2 times")):
        sample_clips([*clips, clips[3]], 1000)
    assert sample_clips([], 3) == []


def test_a_sample_is_balanced_over_splits() -> None:
    """Also if a split has few clips."""
    splits = ["train"] * 80 + ["val"] * 12 + ["test"] * 8
    clips = [
        Clip(f"{i}#0", Path(f"{i}"), subject=f"{split}{i % 4}", split=split, labels={"label": "01"[i % 2]})
        for i, split in enumerate(splits)
    ]
    chosen = sample_clips(clips, 18)
    assert Counter(clip.split for clip in chosen) == {"train": 6, "val": 6, "test": 6}
    assert Counter((clip.split, clip.labels["label"]) for clip in chosen) == {
        (split, label): 3 for split in ("train", "val", "test") for label in "01"
    }


@pytest.mark.slow
def test_daisee_with_dry_run_limit_and_verify_sample(
    daisee: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """--dry-run counts and estimates without writing, --limit selects few clips, --verify-sample compares."""
    argv = ["--data", str(daisee), "--out", str(tmp_path / "s.zarr"), "--weights", "random", "--json"]
    argv += ["--geometry", "off", "--workers", "0", "--window", "2"]
    assert main([*argv, "--dry-run"]) == 0
    out, shown = capfd.readouterr()
    summary = json.loads(out)
    assert not (tmp_path / "s.zarr").exists()
    assert {"to_extract": 4, "videos": 4, "timed": 3, "files": 8}.items() <= summary.items()
    assert summary["hours"] > 0
    assert summary["bytes"] == 4 * 6 * (960 * 2 + 6 * 4)
    assert summary["counts"].keys() == {"Boredom", "Engagement", "Confusion", "Frustration"}
    assert summary["counts"]["Engagement"] == {"test": {"2": 1}, "train": {"2": 1, "3": 1}, "val": {"1": 1}}
    assert "layout daisee" in shown
    assert "on openvino (cpu, " in shown
    assert "1 videos without a label" in shown
    assert main([*argv, "--limit", "2"]) == 0
    assert json.loads(capfd.readouterr().out)["done"] == 2
    assert main(argv) == 0
    summary = json.loads(capfd.readouterr().out)
    assert {"done": 2, "skipped": 2, "layout": "daisee"}.items() <= summary.items()
    assert summary["unpaired_labels"] == ["Train: 9999999999.avi"]
    store = FeatureStore.open(tmp_path / "s.zarr", "r+")
    assert store.label_names.keys() == {"Boredom", "Engagement", "Confusion", "Frustration"}
    assert main([*argv, "--verify-sample", "3"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert {"compared": 3, "identical": 3, "worst_cosine": 1.0, "differing": []}.items() <= summary.items()
    x, _ = store.read_stream("embeddings")
    for row, frames in enumerate(store.read_frames()):
        store.write_row(row, embeddings=x[row][:, ::-1], frames=frames)
    assert main([*argv, "--verify-sample", "3"]) == 1
    assert "embeddings differ" in json.loads(capfd.readouterr().out)["differing"][0]["reason"]
