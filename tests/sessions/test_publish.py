"""Publishing: the three parts of a session, what each holds, and that it happens once."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from sensorium_pipeline.errors import InputError, OrganiserError, QualityGateError
from sensorium_pipeline.sessions.alignment import responses
from sensorium_pipeline.sessions.catalogue import (
    list_sessions,
    load_hidden,
    load_inputs,
    load_session_data,
    read_binding,
    read_session,
    show_session,
)
from sensorium_pipeline.sessions.parts import released_order
from sensorium_pipeline.sessions.records import PublishedSession, SessionParameters, SessionRecord
from sensorium_pipeline.sessions.schema import read_array
from sensorium_pipeline.storage import Series, dataset_url, list_files, open_dataset, read_file
from sensorium_pipeline.training.data import Statistics


def test_parts_hold_what_they_must_and_open_with_plain_xarray(workspace, published):
    record = published()
    tree = xr.open_datatree(dataset_url(workspace.open, record.open_digest), engine="zarr")
    assert set(tree.children) == {"neurons", "trials", "images", "statistics"}
    assert set(tree["trials"].to_dataset().variables) == {"trial_id", "image_id", "tier", "response"}
    assert tree["images/model_input"].shape[1:] == (36, 64)
    assert tree["neurons/position"].attrs["units"] == "um"
    assert record.neurons == tree.sizes.get("neuron", tree["neurons"].sizes["neuron"]) == 10
    # Cells that were not kept leave gaps in the unit ids.
    assert tree["neurons/unit_id"].values.tolist() == [1, 2, 4, 5, 6, 7, 8, 10, 11, 12]
    lab = open_dataset(workspace.lab, record.lab_digest)
    assert lab["traces/activity"].shape == (12, 1400)
    assert lab["recording/shifts"].shape == (2, 1400, 2)
    assert lab.attrs["recording_digest"] == record.recording_digest


def test_released_responses_are_the_aligned_ones_in_the_secret_order(workspace, raw_of, publish, plane_of):
    raw, planes = raw_of(role="open", track=None), [plane_of(1), plane_of(2)]
    record = publish(raw, planes)
    tree = open_dataset(workspace.open, record.open_digest)
    lab = open_dataset(workspace.lab, record.lab_digest)
    kept = read_array(lab, "trials/rejection") == ""
    order = np.flatnonzero(kept)[released_order(record.lab_digest, int(kept.sum()))]
    neuron = 7  # of the released: the third of the second plane, since the third found there was not kept
    plane, cell = planes[1], 3
    delay = raw.plane_delays[1] + raw.line_period * plane.centroids[cell, 0]
    expected = responses(plane.activity[[cell]], raw.frame_times, np.array([delay]), raw.stimulus.onset[order])[:, 0]
    np.testing.assert_allclose(tree["trials/response"].values[:, neuron], expected, rtol=1e-6)
    np.testing.assert_array_equal(tree["trials/image_id"].values, raw.stimulus.image_id[order])


def test_traces_of_planes_follow_each_other(workspace, raw_of, publish, plane_of):
    planes = [plane_of(1, neurons=70), plane_of(2, neurons=5)]  # the first does not end at a chunk of the store
    lab = open_dataset(workspace.lab, publish(raw_of(), planes).lab_digest)
    for name in ("fluorescence", "neuropil", "dff", "activity"):
        np.testing.assert_array_equal(lab[f"traces/{name}"].values, np.concatenate([getattr(plane, name) for plane in planes]))
    np.testing.assert_array_equal(lab["neurons/footprint_neuron"].values[-2:], [74, 74])
    np.testing.assert_array_equal(lab["neurons/plane"].values, np.repeat([0, 1], [70, 5]))


def test_trials_at_flagged_frames_and_beyond_the_end_are_rejected_with_a_reason(workspace, raw_of, publish):
    raw = raw_of()
    onset = raw.stimulus.onset.copy()
    onset[-1] = 174.6
    record = publish(replace(raw, stimulus=replace(raw.stimulus, onset=onset)))
    assert record.rejected["outside the recording"] == 1
    assert record.rejected["flagged frames"] >= 1
    assert sum(record.trials.values()) + sum(record.rejected.values()) == len(raw.stimulus)


def test_missing_behaviour_rejects(raw_of, publish):
    raw = raw_of()
    dilation = raw.pupil.dilation.copy()
    dilation[(raw.pupil.time > 50) & (raw.pupil.time < 60)] = np.nan
    running = raw.treadmill.time < 100
    running |= raw.treadmill.time > 105
    treadmill = replace(raw.treadmill, time=raw.treadmill.time[running], speed=raw.treadmill.speed[running])
    record = publish(replace(raw, pupil=replace(raw.pupil, dilation=dilation), treadmill=treadmill))
    assert record.rejected["pupil missing"] >= 8
    assert record.rejected["treadmill missing"] >= 4


@pytest.mark.parametrize(("role", "track", "behavior", "hidden"), [
    ("open", None, True, set()),
    ("competition", "sensorium", False, {"test", "final_test"}),
    ("competition", "sensorium+", True, {"test", "final_test"}),
])  # fmt: skip
def test_what_is_visible_depends_on_role_and_track(workspace, published, role, track, behavior, hidden):
    record = published(role, track)
    tree = open_dataset(workspace.open, record.open_digest)
    assert ("behavior" in tree["trials"].data_vars) == ("pupil_center" in tree["trials"].data_vars) == behavior
    assert ("behavior_std" in tree["statistics"].data_vars) == behavior
    tier, response = read_array(tree, "trials/tier"), tree["trials/response"].values
    np.testing.assert_array_equal(np.isnan(response).all(axis=1), np.isin(tier, list(hidden)))
    np.testing.assert_array_equal(np.isnan(response).any(axis=1), np.isin(tier, list(hidden)))
    if behavior:
        assert np.isfinite(tree["trials/behavior"].values).all()
    assert (record.sealed_digest is None) == (not hidden)
    summary = show_session(workspace.open, record.name)
    assert set(summary.hidden_tiers) == hidden
    assert summary.behavior == behavior


def test_nothing_open_names_the_lab_the_sealed_part_or_the_recording(workspace, published):
    record = published()
    secrets = [record.lab_digest, record.sealed_digest, record.recording_digest, record.report_digest]
    for stored in workspace.open.walk(""):
        payload = workspace.open.read(stored.path)
        for secret in secrets:
            assert secret.encode() not in payload, stored.path


def test_same_content_has_the_same_digests_and_appends_nothing(workspace, raw_of, publish):
    raw = raw_of()
    first, second = publish(raw), publish(raw)
    assert first == second
    assert Series(workspace.open, f"sessions/{first.name}").numbers() == [1]
    assert Series(workspace.lab, f"sessions/{first.name}").numbers() == [1]
    changed = publish(raw, parameters=SessionParameters(response_window=(0.05, 0.5)))
    assert changed.open_digest != first.open_digest
    assert read_session(workspace.open, first.name) == (2, changed.published())
    assert read_session(workspace.open, first.name, first.open_digest) == (1, first.published())
    assert read_binding(workspace.sealed, first.open_digest) == first


def test_order_of_trials_changes_with_the_lab_digest_alone():
    np.testing.assert_array_equal(released_order("a" * 64, 50), released_order("a" * 64, 50))
    assert (released_order("a" * 64, 50) != released_order("b" * 64, 50)).any()
    assert sorted(released_order("a" * 64, 50)) == list(range(50))


def test_gates_refuse_and_say_which_and_by_how_much(workspace, raw_of, publish, plane_of):
    dim = plane_of(1)
    dim = replace(dim, metrics=dim.metrics.model_copy(update={"median_snr": 0.5}))
    with pytest.raises(QualityGateError, match=r"plane 0: median_snr is 0.5, must be at least .* \(1 too little\)") as refusal:
        publish(raw_of(), [dim, plane_of(2)])
    assert list_sessions(workspace.open) == []
    assert workspace.open.walk("") == []
    assert workspace.sealed.walk("") == []
    digest = str(refusal.value).split("dataset ")[1][:64]
    assert b"Refused" in read_file(workspace.lab, digest, "report.md")


def test_report_is_in_the_lab_store_alone(workspace, published):
    record = published()
    report = read_file(workspace.lab, record.report_digest, "report.md").decode()
    assert "Passed" in report
    for entry in list_files(workspace.lab, record.report_digest):
        if entry.path.endswith(".png"):
            assert f"({entry.path})" in report


def test_a_competition_session_must_hide_something_and_belong_to_a_track(workspace, raw_of, publish):
    raw = raw_of()
    singles = raw.stimulus.image_id < 500
    bare = replace(raw, stimulus=replace(raw.stimulus, **{n: getattr(raw.stimulus, n)[singles] for n in ("image_id", "onset", "offset")}))
    with pytest.raises(OrganiserError, match="nothing of this competition session"):
        publish(bare)
    with pytest.raises(OrganiserError, match="no release rule"):
        publish(raw_of(track=None))
    assert workspace.open.walk("") == []


def test_planes_of_another_recording_are_refused(raw_of, publish, plane_of):
    with pytest.raises(InputError, match="2 planes of 1400 frames"):
        publish(raw_of(), [plane_of(1)])


def test_session_data_is_what_a_model_may_see(workspace, published):
    record = published("open", None)
    tree = open_dataset(workspace.open, record.open_digest)
    plus, plain = load_session_data(tree, "sensorium+"), load_session_data(tree, "sensorium")
    assert len(plus.training) == record.trials["train"]
    assert len(plus.validation) == record.trials["validation"]
    assert plus.training.inputs.images.shape[1:] == plus.description.image_shape == (36, 64)
    assert plus.training.inputs.behavior.shape == (len(plus.training), 3)
    assert plain.training.inputs.behavior is plain.description.statistics.behavior_mean is None
    statistics = plus.description.statistics
    assert isinstance(statistics, Statistics)
    np.testing.assert_allclose(statistics.response_std, plus.training.responses.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.behavior_mean, plus.training.inputs.behavior.mean(axis=0), rtol=1e-4)
    with pytest.raises(InputError, match=r"sensorium, sensorium\+"):
        load_session_data(tree, "sensorium2")


def test_a_session_of_the_other_track_is_refused(workspace, published):
    tree = open_dataset(workspace.open, published("competition", "sensorium+").open_digest)
    with pytest.raises(InputError, match="belongs to the track"):
        load_session_data(tree, "sensorium")


@pytest.mark.parametrize(("role", "track"), [("open", None), ("competition", "sensorium+")])
def test_hidden_responses_and_inputs_are_of_the_same_trials(workspace, published, role, track):
    record = published(role, track)
    tree = open_dataset(workspace.open, record.open_digest)
    trial_id, image_id, inputs = load_inputs(tree, "test", "sensorium+")
    hidden = load_hidden(workspace, record.open_digest, "test")
    np.testing.assert_array_equal(hidden.trial_id, trial_id)
    np.testing.assert_array_equal(hidden.image_id, image_id)
    assert set(hidden.tier) == {"test"}
    assert hidden.responses.shape == (len(trial_id), record.neurons)
    assert np.isfinite(hidden.responses).all()
    assert len(inputs) == len(inputs.behavior) == len(trial_id)
    # The sealed responses are those of the lab part.
    lab = open_dataset(workspace.lab, record.lab_digest)
    kept = np.flatnonzero(read_array(lab, "trials/rejection") == "")
    rows = kept[released_order(record.lab_digest, len(kept))][hidden.trial_id]
    np.testing.assert_array_equal(hidden.responses, lab["trials/response"].values[rows][:, lab["neurons/kept"].values])
    np.testing.assert_allclose(hidden.precision, 1 / tree["statistics/response_std"].values, rtol=1e-5)
    both, _, _ = load_inputs(tree, ["test", "final_test"], "sensorium+")
    assert len(both) == record.trials["test"] + record.trials["final_test"]
    with pytest.raises(InputError, match="no trials of the tier"):
        load_hidden(workspace, record.open_digest, "finaltest")
    with pytest.raises(InputError, match="no version of this session"):
        read_session(workspace.open, record.name, "0" * 64)


def test_hidden_responses_of_an_unknown_session(workspace):
    with pytest.raises(OrganiserError, match="no hidden part"):
        read_binding(workspace.sealed, "0" * 64)
    with pytest.raises(InputError, match="Known sessions: none yet"):
        read_session(workspace.open, "9-9-9")


def test_the_public_record_is_a_part_of_the_private_one():
    assert set(PublishedSession.model_fields) < set(SessionRecord.model_fields)
    assert not {"lab_digest", "sealed_digest", "recording_digest"} & set(PublishedSession.model_fields)
