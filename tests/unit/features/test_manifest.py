"""Manifests: accepted formats, and errors of users."""

import itertools
import os
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.manifest import Clip, clip_id, dropped_s, read_csv, read_folder, videos_below, windows

bytes_as_names = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")


def write_manifest(folder: Path, text: str, videos: tuple[str, ...] = ("a.mp4", "b.mp4")) -> Path:
    """Write a CSV next to (empty) videos."""
    for video in videos:
        (folder / video).parent.mkdir(parents=True, exist_ok=True)
        (folder / video).touch()
    file = folder / "labels.csv"
    file.write_bytes(text.encode("utf-8"))
    return file


def test_csv_with_bom_spaces_and_hangul(tmp_path: Path) -> None:
    """BOM and spaces of spreadsheets are removed, and every column is kept."""
    file = write_manifest(
        tmp_path,
        "\ufeffPath, label ,Subject,split,start_s,end_s,자리\r\n"
        "한글 폴더/가.mp4,engaged,s1,Validation,5,15,앞\r\n",
        ("한글 폴더/가.mp4",),
    )
    (clip,) = read_csv(file).clips
    assert clip.clip_id == "한글 폴더/가.mp4#5000"
    assert (clip.subject, clip.split, clip.start_s, clip.end_s) == ("s1", "val", 5.0, 15.0)
    assert clip.labels == {"label": "engaged", "자리": "앞"}
    assert clip.slices == {"자리": "앞"}


def test_decomposed_and_composed_hangul_are_one_clip(tmp_path: Path) -> None:
    """A decomposed file name (macOS) is found by the composed name that users type, with one clip id."""
    decomposed = unicodedata.normalize("NFD", "가나.mp4")
    file = write_manifest(tmp_path, "path,label\n가나.mp4,x\n", (decomposed,))
    (clip,) = read_csv(file).clips
    assert clip.path.exists()
    assert clip.clip_id == unicodedata.normalize("NFC", "가나.mp4#0")


def test_hangul_of_mixed_form_is_found(tmp_path: Path) -> None:
    """A composed folder name with decomposed file names, and the reverse; a mixed name as in the cell."""
    composed, decomposed = "가나", unicodedata.normalize("NFD", "가나")
    videos = (f"{composed}/{decomposed}.mp4", f"{decomposed}/x/{composed}.mp4", f"{composed}{decomposed}.mp4")
    for form in ("NFC", "NFD"):
        rows = "".join(f"{unicodedata.normalize(form, name)},x\n" for name in videos[:2])
        file = write_manifest(tmp_path, f"path,label\n{rows}{videos[2]},x\n", videos)
        manifest = read_csv(file)
        assert manifest.problems == ()
        assert [clip.path.is_file() for clip in manifest.clips] == [True] * 3
        assert [clip.clip_id for clip in manifest.clips] == [
            "가나/가나.mp4#0",
            "가나/x/가나.mp4#0",
            "가나가나.mp4#0",
        ]


def test_tilde_is_a_character_or_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~$a.mp4` is a temporary file of an open office document; it is read if it exists, else a problem."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    rows = "~$a.mp4,x\n~$b.mp4,x\n~/c.mp4,x\n"
    manifest = read_csv(write_manifest(tmp_path, "path,label\n" + rows, ("~$a.mp4", "home/c.mp4")))
    assert [clip.clip_id for clip in manifest.clips] == ["~$a.mp4#0", "home/c.mp4#0"]
    assert [problem.reason for problem in manifest.problems] == ["no such file: ~$b.mp4"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",engaged,,", "path is empty"),
        (f"{'a' * 300}.mp4,engaged,,", "no such file: aaa"),
        ("nowhere.mp4,engaged,,", "no such file: nowhere.mp4"),
        ("a.mp4,engaged,ten,", "start_s 'ten' is not a number"),
        ("a.mp4,engaged,-1,", "start_s '-1' is not a number"),
        ("a.mp4,engaged,nan,", "start_s 'nan' is not a number"),
        ("a.mp4,engaged,10,5", "end_s 5 is not after start_s 10"),
        ("a.mp4,engaged", "2 fields, but the header has 4"),
    ],
)
def test_bad_line_is_a_problem_with_its_number(tmp_path: Path, row: str, reason: str) -> None:
    """The other lines are read."""
    file = write_manifest(tmp_path, f"path,label,start_s,end_s\nb.mp4,engaged,,\n\n{row}\n")
    manifest = read_csv(file)
    assert [clip.path.name for clip in manifest.clips] == ["b.mp4"]
    (problem,) = manifest.problems
    assert problem.clip_id == "line 4"
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("label\nx\n", "no column 'path'"),
        ("path\na.mp4\n", "no label column"),
        ("path,label,\na.mp4,x,\n", "unique and not empty"),
        ("path,label,label\na.mp4,x,y\n", "unique and not empty"),
        ("path,label\na.mp4,x\nb.mp4,y\na.mp4,x\n", r"lines 2 and 4 \(a.mp4#0\)"),
        ('path,label\n"a.mp4,x\n', "line"),
    ],
)
def test_unusable_manifest_raises(tmp_path: Path, text: str, message: str) -> None:
    """The whole file is refused."""
    with pytest.raises(ValueError, match=message):
        read_csv(write_manifest(tmp_path, text))


TABLE = "path;label;subject\na.mp4;집중;민준\nb.mp4;산만;서연\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_may_have_any_encoding_and_separator(
    tmp_path: Path, encoding: str, separator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As spreadsheet programs write them; CP949 is what Excel writes in Korea by default, and it is said."""
    file = write_manifest(tmp_path, "", ("a.mp4", "b.mp4"))
    file.write_bytes(TABLE.replace(";", separator).encode(encoding))
    clips = read_csv(file).clips
    assert [(c.clip_id, c.labels["label"], c.subject) for c in clips] == [
        ("a.mp4#0", "집중", "민준"),
        ("b.mp4#0", "산만", "서연"),
    ]
    assert ("line 2 is not UTF-8" in capsys.readouterr().err.replace("\n", " ")) == (encoding == "cp949")


def test_another_encoding_is_an_error_with_its_line(tmp_path: Path) -> None:
    file = write_manifest(tmp_path, "")
    file.write_bytes("path,label\na.mp4,x\nb.mp4,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 3 is not UTF-8: save it as 'CSV UTF-8'"):
        read_csv(file)


def test_usual_column_names_are_understood_and_named(tmp_path: Path) -> None:
    text = "Video,class,participant,id\na.mp4,x,p1,1\nb.mp4,y,p1,2\nc.mp4,y,p2,3\n"
    manifest = read_csv(write_manifest(tmp_path, text, ("a.mp4", "b.mp4", "c.mp4")))
    assert [(c.labels["label"], c.subject) for c in manifest.clips] == [("x", "p1"), ("y", "p1"), ("y", "p2")]
    assert [note.partition(" (")[0] for note in manifest.notes] == [
        "labels.csv: column 'Video' is read as 'path'",
        "labels.csv: column 'class' is read as 'label'",
        "labels.csv: column 'participant' is read as 'subject'",
    ]
    two = "path,label,user,person\na.mp4,x,u,p\nb.mp4,y,u,p\n"
    manifest = read_csv(write_manifest(tmp_path, two, ("a.mp4", "b.mp4")))
    assert [clip.subject for clip in manifest.clips] == ["", ""], "either could be meant"
    assert manifest.notes == ()


def test_a_column_that_differs_in_every_row_is_not_the_subject(tmp_path: Path) -> None:
    """Each clip would be a person of its own, and one person in training and test."""
    manifest = read_csv(write_manifest(tmp_path, "path,label,id\na.mp4,x,1\nb.mp4,y,2\n", ("a.mp4", "b.mp4")))
    assert [clip.subject for clip in manifest.clips] == ["", ""]
    assert manifest.notes == ()


def test_a_column_of_our_name_is_never_replaced(tmp_path: Path) -> None:
    text = "path,label,class,user,subject\na.mp4,x,other,u,p1\nb.mp4,y,other,u,p2\n"
    manifest = read_csv(write_manifest(tmp_path, text, ("a.mp4", "b.mp4")))
    assert [(c.labels["label"], c.subject) for c in manifest.clips] == [("x", "p1"), ("y", "p2")]
    assert manifest.notes == ()


def test_semicolons_and_windows_paths_are_understood(tmp_path: Path) -> None:
    """As spreadsheets of some countries and Windows users write them."""
    file = write_manifest(tmp_path, "path;label\nsub\\a.mp4;x\n", ("sub/a.mp4",))
    (clip,) = read_csv(file).clips
    assert clip.clip_id == "sub/a.mp4#0"


def test_a_column_of_many_values_is_a_slice_only(tmp_path: Path) -> None:
    """A free text for each clip is not a label."""
    videos = tuple(f"{index}.mp4" for index in range(30))
    rows = "".join(f"{video},x,note {video}\n" for video in videos)
    clip = read_csv(write_manifest(tmp_path, "path,label,note\n" + rows, videos)).clips[0]
    assert set(clip.labels) == {"label"}
    assert clip.slices == {"note": "note 0.mp4"}


def test_videos_elsewhere_are_fine_for_relabelling(tmp_path: Path) -> None:
    """`features label` needs no videos."""
    file = write_manifest(tmp_path, "path,label\nfar\\away.mp4,x\n", ())
    assert read_csv(file, require_files=False).clips[0].clip_id == "far/away.mp4#0"


def test_correction_needs_a_subject_split_or_fold_column(tmp_path: Path) -> None:
    """A label column is not required."""
    clip = read_csv(write_manifest(tmp_path, "path,Subject\na.mp4,s1\n"), require_labels=False).clips[0]
    assert (clip.subject, clip.labels) == ("s1", {})
    with pytest.raises(ValueError, match="no label column"):
        read_csv(write_manifest(tmp_path, "path,start_s\na.mp4,1\n"), require_labels=False)


def test_folder_of_classes(tmp_path: Path) -> None:
    """The folder's name is the label; hidden files and texts are skipped, videos outside a label folder are
    listed."""
    for name in ("집중/a.MP4", "딴짓/b.avi", "딴짓/._b.avi", "딴짓/notes.txt", "loose.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    manifest = read_folder(tmp_path)
    assert {clip.clip_id: clip.labels["label"] for clip in manifest.clips} == {
        "딴짓/b.avi#0": "딴짓",
        "집중/a.MP4#0": "집중",
    }
    assert [problem.clip_id for problem in manifest.problems] == ["loose.mp4#0"]


def test_folder_of_splits_and_classes(tmp_path: Path) -> None:
    """ROOT/<split>/<label>/<video> also sets the split."""
    for name in ("Train/x/a.mp4", "Validation/y/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    clips = read_folder(tmp_path).clips
    assert [(clip.split, clip.labels["label"]) for clip in clips] == [("train", "x"), ("val", "y")]


@bytes_as_names
def test_a_name_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    """The name of a file or of its folder; a store cannot hold it."""
    for name in (b"x/a.mp4", b"x/caf\xe9.mp4", b"\xb0\xa1/b.mp4"):
        file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        file.parent.mkdir(exist_ok=True)
        file.touch()
    manifest = read_folder(tmp_path)
    assert [clip.clip_id for clip in manifest.clips] == ["x/a.mp4#0"]
    assert [problem.clip_id for problem in manifest.problems] == [
        r"\udcb0\udca1/b.mp4#0",
        r"x/caf\udce9.mp4#0",
    ]
    assert {problem.reason for problem in manifest.problems} == {"its name is not UTF-8: rename it"}


@links
def test_linked_folders_are_entered(tmp_path: Path) -> None:
    """Each once, and none that is found without the link: so loops end and no video has two names. Parents of
    the root are not entered."""
    root, disk = tmp_path / "root", tmp_path / "disk"
    for name in ("root/engaged/a.mp4", "disk/b.mp4", "disk/deep/c.mp4", "beside.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (
        (root / "distracted", disk),
        (root / "again", disk / "deep"),
        (root / "also engaged", root / "engaged"),
        (root / "engaged" / "up", root),
        (root / "engaged" / "out", tmp_path),
        (disk / "deep" / "loop", disk),
    ):
        link.symlink_to(target, target_is_directory=True)
    manifest = read_folder(root)
    assert manifest.problems == ()
    assert [clip.clip_id for clip in manifest.clips] == [
        "again/c.mp4#0",
        "distracted/b.mp4#0",
        "engaged/a.mp4#0",
    ]


@links
def test_unreadable_folders_and_broken_links_are_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, and links to an unmounted disk: their clips do not count as removed."""
    for name in ("engaged/a.mp4", "bored/b.mp4", "bored/deep/c.mp4", "engaged/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("engaged/d.mp4", "sleepy", "engaged/old.txt"):
        (tmp_path / name).symlink_to("/nowhere")
    scan = os.scandir

    def refuse(place: str | Path) -> object:
        if Path(place).name == "deep":
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    manifest = read_folder(tmp_path)
    assert [clip.clip_id for clip in manifest.clips] == ["bored/b.mp4#0", "engaged/a.mp4#0"]
    assert [(problem.clip_id, problem.reason) for problem in manifest.problems] == [
        ("bored/deep#0", "cannot be listed: Permission denied"),
        ("engaged/d.mp4#0", "is a broken link"),
        ("sleepy#0", "is a broken link"),
    ]
    assert videos_below(tmp_path / "none", tmp_path) == ([], [])


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    """The error has the expected structure."""
    with pytest.raises(ValueError, match="no videos under"):
        read_folder(tmp_path)


def spans(clip: Clip, duration_s: float) -> list[tuple[float, float | None]]:
    """Start and end of each ten-second window."""
    return [(window.start_s, window.end_s) for window in windows(clip, duration_s, 10.0)]


def test_windows_follow_the_remainder_rule() -> None:
    """Under half a window is dropped, unless it is the only one."""
    clip = Clip("a.mp4#0", Path("a.mp4"))
    assert spans(clip, 10.024) == [(0, 10)]
    assert spans(clip, 9.9999) == [(0, 9.9999)]
    assert spans(clip, 3) == [(0, 3)]
    assert spans(clip, 24.9) == [(0, 10), (10, 20)]
    assert spans(clip, 25) == [(0, 10), (10, 20), (20, 25)]
    assert [window.clip_id for window in windows(clip, 25, 10)] == ["a.mp4#0", "a.mp4#10000", "a.mp4#20000"]
    assert dropped_s(clip, 24.9, 10) == pytest.approx(4.9)


def test_clip_with_its_own_times_keeps_them() -> None:
    """Segments of a long video; one starts after its end."""
    assert spans(Clip("a.mp4#30000", Path("a.mp4"), 30.0, 40.0), 3600) == [(30, 40)]
    assert spans(Clip("a.mp4#30000", Path("a.mp4"), 30.0, 40.0), 37) == [(30, 37)]
    assert spans(Clip("a.mp4#30000", Path("a.mp4"), 30.0, 40.0), 20) == [(30, 40)]


@settings(deadline=None)
@given(st.floats(0, 1e4), st.floats(0, 1e3), st.floats(0.5, 100))
def test_windows_are_disjoint_ascending_and_never_none(
    start_s: float, length_s: float, window_s: float
) -> None:
    """For any duration."""
    cut = windows(Clip("a#0", Path("a"), start_s), start_s + length_s, window_s)
    assert cut
    for window, following in itertools.pairwise(cut):
        assert window.end_s is not None
        assert window.end_s <= following.start_s + 1e-6
    assert all(window.end_s is None or window.end_s > window.start_s for window in cut)
    assert len({window.start_s for window in cut}) == len(cut)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_by_value_error(tmp_path: Path, content: bytes) -> None:
    """No other exception is raised."""
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    try:
        read_csv(file)
    except ValueError:
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_cells_are_read_or_refused_by_value_error(tmp_path: Path, cells: list[str]) -> None:
    """No other exception is raised, with a correct header."""
    file = tmp_path / "labels.csv"
    file.write_text("path,label,start_s,end_s\n" + ",".join(cells), encoding="utf-8", errors="surrogatepass")
    try:
        read_csv(file)
    except ValueError:
        pass


def test_clip_id_of_a_path_outside_the_root(tmp_path: Path) -> None:
    """Still a relative path."""
    assert clip_id(tmp_path / "other" / "a.mp4", tmp_path / "data", 1.5) == "../other/a.mp4#1500"
