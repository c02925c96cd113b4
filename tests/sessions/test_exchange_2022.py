"""Sessions of SENSORIUM 2022: a file tree in, a published session that passes the audit, and a file tree out again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tree_2022 import save, write_tree

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.progress import silent
from sensorium_pipeline.sessions.audit import audit_session
from sensorium_pipeline.sessions.catalogue import load_hidden, load_session_data, read_session, show_session
from sensorium_pipeline.sessions.exchange_2022 import export_tree, import_tree, trial_names
from sensorium_pipeline.sessions.records import Provenance
from sensorium_pipeline.sessions.tree_2022 import read_tree, stored_number
from sensorium_pipeline.sessions.tree_2022 import write_tree as write_read_tree
from sensorium_pipeline.storage import Workspace, open_dataset, read_file

PROVENANCE = Provenance(code_version="0.1.0", lock_digest="0" * 64)
NAME = "26872-17-20"


def meta(tree: Path, name: str) -> np.ndarray:
    return np.load(tree / f"meta/{name}.npy")


class TestImport:
    @pytest.mark.parametrize("track", [None, "sensorium", "sensorium+"])
    def test_a_session_like_any_other(self, workspace: Workspace, tmp_path: Path, track) -> None:
        tree = write_tree(tmp_path / "tree")
        made = import_tree(workspace, tree, track, PROVENANCE)
        assert made.notes == ()
        report = audit_session(workspace, NAME)
        assert report.passed, report.findings
        summary = show_session(workspace.open, NAME)
        assert (summary.session, summary.behavior) == (made.session.published(), track != "sensorium")
        assert set(summary.hidden_tiers) == (set() if track is None else {"test", "final_test"})
        opened = open_dataset(workspace.open, made.session.open_digest)
        tiers = meta(tree, "trials/tiers")
        np.testing.assert_array_equal(opened["trials/image_id"].values, meta(tree, "trials/frame_image_id"))
        np.testing.assert_array_equal(opened["neurons/unit_id"].values, meta(tree, "neurons/unit_ids"))
        shown = [trial for trial, tier in enumerate(tiers) if track is None or tier in ("train", "validation")]
        response = opened["trials/response"].values
        for trial in shown:
            np.testing.assert_array_equal(response[trial], np.load(tree / f"data/responses/{trial}.npy"))
        assert np.isnan(np.delete(response, shown, axis=0)).all()
        for tier in ("test", "final_test"):
            hidden = load_hidden(workspace, made.session.open_digest, tier)
            np.testing.assert_array_equal(hidden.responses[0], np.load(tree / f"data/responses/{hidden.trial_id[0]}.npy"))
            np.testing.assert_array_equal(hidden.trial_id, np.flatnonzero(tiers == tier))
        data = load_session_data(opened, track or "sensorium")
        first = int(np.flatnonzero(tiers == "train")[0])
        picture = np.load(tree / f"data/images/{first}.npy")[0].astype(np.float64)
        # A quarter of the size by linear interpolation: the mean of the four middle pixels of sixteen.
        np.testing.assert_allclose(data.training.inputs.images[0], picture.reshape(36, 4, 64, 4)[:, 1:3, :, 1:3].mean((1, 3)), rtol=1e-6)

    def test_again_changes_nothing(self, workspace: Workspace, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree")
        first = import_tree(workspace, tree, "sensorium", PROVENANCE)
        assert import_tree(workspace, tree, "sensorium", PROVENANCE) == first
        assert read_session(workspace.open, NAME)[0] == 1
        tiers = meta(tree, "trials/tiers").tolist()
        for tier in ("test", "train"):
            path = tree / f"data/responses/{tiers.index(tier)}.npy"
            np.save(path, np.load(path) * 2)
            if tier == "test":
                # Other hidden responses under the same open part would change scores behind everybody's back.
                with pytest.raises(OrganiserError, match="the same open part is bound to other parts"):
                    import_tree(workspace, tree, "sensorium", PROVENANCE)
        assert import_tree(workspace, tree, "sensorium", PROVENANCE).session.open_digest != first.session.open_digest
        assert read_session(workspace.open, NAME)[0] == 2

    def test_no_time_and_no_order_is_published(self, workspace: Workspace, tmp_path: Path) -> None:
        made = import_tree(workspace, write_tree(tmp_path / "numbered", hashed=False), "sensorium", PROVENANCE)
        trials = sum(made.session.trials.values())
        # Numbers of 2022 count presentations, so trials keep the numbers of their files; hashes say nothing and are kept.
        assert trial_names(workspace.open, made.session.open_digest, trials).tolist() == [str(trial) for trial in range(trials)]
        assert not workspace.open.list("trial-names")
        hashed = import_tree(workspace, write_tree(tmp_path / "hashed"), "sensorium", PROVENANCE)
        names = trial_names(workspace.open, hashed.session.open_digest, trials)
        assert names.tolist() == meta(tmp_path / "hashed", "trials/trial_idx").tolist()
        everything = b"".join(path.read_bytes() for path in Path(workspace.open.url.removeprefix("file://")).rglob("*") if path.is_file())
        assert b"2022-01-01" not in everything
        assert b"frame_trial_ts" not in everything

    def test_what_is_odd_is_said(self, workspace: Workspace, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree", zero_hidden=True)
        save(tree / "meta/statistics/images/all/mean.npy", np.array(113.5))
        made = import_tree(workspace, tree, "sensorium", PROVENANCE)
        assert "All hidden responses are zero" in made.notes[0]
        assert "the tree says 113.5000" in made.notes[1]

    def test_trials_that_lack_something_are_said(self, workspace: Workspace, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree")
        tiers = meta(tree, "trials/tiers").tolist()
        trial, test = tiers.index("train"), tiers.index("test")
        save(tree / f"data/responses/{trial}.npy", np.zeros(12))
        save(tree / f"data/responses/{test}.npy", np.zeros(12))
        save(tree / f"data/behavior/{test}.npy", np.array([1.0, np.nan, 2.0]))
        made = import_tree(workspace, tree, "sensorium", PROVENANCE)
        assert [note.split(",")[0] for note in made.notes] == [
            "Responses of all neurons are zero in 1 of 12 trials of tier train",
            "Responses of all neurons are zero in 1 of 6 trials of tier test",
            "Behaviour or pupil is not finite in 1 of 27 trials",
        ]
        report = read_file(workspace.lab, made.session.report_digest, "report.md").decode()
        assert all(note in report for note in made.notes)
        for track in (None, "sensorium+"):  # where models are given behaviour
            with pytest.raises(InputError, match=f"Behaviour or pupil is not finite in 1 of 27 trials, first in trial {test}"):
                import_tree(workspace, tree, track, PROVENANCE)

    def test_statistics_of_a_tree(self, tmp_path: Path) -> None:
        path = tmp_path / "mean.npy"
        for stored, number in ((np.array(113.5), 113.5), (np.array([7]), 7.0), (np.zeros((1, 144, 256)), None), (np.array("x"), None)):
            save(path, stored)
            assert stored_number(path) == number
        path.write_bytes(b"")
        with pytest.raises(InputError, match="no readable array"):
            stored_number(path)
        assert stored_number(tmp_path / "none.npy") is None

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda tree: (tree / "data/images/3.npy").unlink(), "data/images/3.npy: the file is missing"),
            (lambda tree: (tree / "data/responses/3.npy").write_bytes(b"?"), "responses/3.npy: no readable array"),
            (lambda tree: np.save(tree / "data/responses/3.npy", np.zeros(3)), r"responses/3.npy: its shape and type are \(3,\)"),
            (lambda tree: np.save(tree / "data/responses/3.npy", np.full(12, np.nan)), "responses/3.npy: .*not finite"),
            (lambda tree: np.save(tree / "data/responses/27.npy", np.ones(12)), "responses/27.npy: .*lists 27 trials, and there are more"),
            (lambda tree: np.save(tree / "meta/neurons/cell_motor_coordinates.npy", np.full((12, 3), np.inf)), "positions hold values"),
            (lambda tree: np.save(tree / "data/images/3.npy", np.full((1, 144, 256), 0.5)), "images/3.npy: its pixels are not whole"),
            (lambda tree: np.save(tree / "data/images/3.npy", np.zeros((1, 36, 64))), r"images/3.npy: an image of \(36, 64\)"),
            (lambda tree: np.save(tree / "meta/trials/tiers.npy", np.array(["train", "exam"])), "unknown tiers exam"),
            (lambda tree: np.save(tree / "meta/trials/tiers.npy", np.array([{}, {}])), "tiers.npy: no readable array"),
            (lambda tree: np.save(tree / "meta/trials/frame_image_id.npy", np.zeros(2)), "frame_image_id.npy: its shape"),
            (lambda tree: np.save(tree / "meta/neurons/unit_ids.npy", np.zeros(12, int)), "one is given twice"),
            (lambda tree: np.save(tree / "meta/neurons/scan_idx.npy", np.arange(12)), "not of one scan"),
            (lambda tree: (tree / "meta").rename(tree / "meat"), "no data/ and meta/"),
            (lambda tree: (tree / "meta/neurons/scan_idx.npy").unlink(), "nothing says which animal"),
        ],
    )  # fmt: skip
    def test_bad_trees(self, workspace: Workspace, tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
        tree = write_tree(tmp_path / "tree")
        spoil(tree)
        with pytest.raises(InputError, match=said) as caught:
            import_tree(workspace, tree, "sensorium", PROVENANCE)
        assert str(tree) in caught.value.where
        assert caught.value.advice
        assert workspace.open.walk("") == []

    def test_nothing_to_hide(self, workspace: Workspace, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there are no trials of tier test"):
            import_tree(workspace, write_tree(tmp_path / "tree", test_images={}), "sensorium", PROVENANCE)


class TestExport:
    def test_what_goes_in_comes_out(self, workspace: Workspace, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree")
        import_tree(workspace, tree, None, PROVENANCE)
        export_tree(workspace.open, NAME, tmp_path / "out")
        written = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.npy"))
        for name in ("data/images/0", "data/responses/0", "data/behavior/5", "data/pupil_center/5"):
            np.testing.assert_allclose(np.load(tmp_path / f"out/{name}.npy"), np.load(tree / f"{name}.npy"), rtol=1e-6)
        np.testing.assert_array_equal(meta(tmp_path / "out", "trials/trial_idx"), meta(tree, "trials/trial_idx"))
        assert len([path for path in written if path.parts[0] == "data"]) == 4 * len(meta(tree, "trials/tiers"))
        train = [np.load(tree / f"data/responses/{t}.npy") for t, tier in enumerate(meta(tree, "trials/tiers")) if tier == "train"]
        for name, expected in (("mean", np.mean(train, 0)), ("median", np.median(train, 0)), ("max", np.max(train, 0))):
            np.testing.assert_allclose(meta(tmp_path / "out", f"statistics/responses/all/{name}"), expected, rtol=1e-5)
        pictures = [np.load(tree / f"data/images/{t}.npy") for t, tier in enumerate(meta(tree, "trials/tiers")) if tier == "train"]
        assert float(meta(tmp_path / "out", "statistics/images/all/mean")) == pytest.approx(np.mean(pictures))
        assert float(meta(tmp_path / "out", "statistics/images/all/median")) == pytest.approx(np.median(pictures), abs=1)
        again = import_tree(workspace, tmp_path / "out", None, PROVENANCE)
        assert read_session(workspace.open, NAME)[0] == 1, again

    def test_what_is_hidden_is_zero(self, workspace: Workspace, tmp_path: Path) -> None:
        tree = write_tree(tmp_path / "tree")
        import_tree(workspace, tree, "sensorium", PROVENANCE)
        export_tree(workspace.open, NAME, tmp_path / "out")
        for trial, tier in enumerate(meta(tree, "trials/tiers")):
            response = np.load(tmp_path / f"out/data/responses/{trial}.npy")
            assert response.any() == (tier in ("train", "validation"))
            assert not np.load(tmp_path / f"out/data/behavior/{trial}.npy").any()

    def test_a_session_of_our_own(self, workspace: Workspace, published, tmp_path: Path) -> None:
        record = published("competition", "sensorium+")
        export_tree(workspace.open, record.name, tmp_path / "out")
        (tmp_path / "scratch").mkdir()
        tree = read_tree(tmp_path / "out", tmp_path / "scratch")
        assert (tree.name, len(tree.tier), len(tree.unit_id)) == (record.name, sum(record.trials.values()), record.neurons)

    def test_nothing_is_written_over(self, workspace: Workspace, tmp_path: Path) -> None:
        import_tree(workspace, write_tree(tmp_path / "tree"), None, PROVENANCE)
        with pytest.raises(InputError, match="something lies there already"):
            export_tree(workspace.open, NAME, tmp_path / "tree")
        (tmp_path / "scratch").mkdir()
        tree = read_tree(tmp_path / "tree", tmp_path / "scratch")
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot write here"):
            write_read_tree(tree, {}, tmp_path / "file" / "out", silent)
