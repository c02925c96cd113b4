"""The leak audit: a published session passes, and each planted leak is found."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from sensorium_pipeline.errors import OrganiserError
from sensorium_pipeline.recordings.raw_session import StimulusImages
from sensorium_pipeline.sessions.audit import audit_session
from sensorium_pipeline.sessions.parts import released_order
from sensorium_pipeline.sessions.publish import bind
from sensorium_pipeline.sessions.records import SessionRecord
from sensorium_pipeline.sessions.schema import read_array
from sensorium_pipeline.storage import Series, open_dataset, stage, write_dataset


@pytest.fixture
def plant(workspace, published):
    """Publish a session, change its open part with a function over its groups, publish that, and audit it."""

    def run(change, role="competition", track="sensorium"):
        record = published(role, track)
        tree = open_dataset(workspace.open, record.open_digest).load()
        groups = {name: tree[name].to_dataset() for name in tree.children}
        attributes = dict(tree.attrs)
        change(groups, attributes)
        planted = xr.DataTree.from_dict({"/": xr.Dataset(attrs=attributes), **groups})
        changed = record.model_copy(update={"open_digest": write_dataset(workspace.open, planted).digest})
        if changed != record:
            bind(workspace, changed)
            Series(workspace.open, f"sessions/{record.name}").append(changed.published())
        return audit_session(workspace, record.name)

    return run


def found(report) -> str:
    return "\n".join(f"{finding.check} | {finding.where} | {finding.message}" for finding in report.findings)


@pytest.mark.parametrize(("role", "track"), [("open", None), ("competition", "sensorium"), ("competition", "sensorium+")])
def test_what_is_published_passes_every_check(plant, role, track):
    report = plant(lambda groups, attributes: None, role, track)
    assert report.passed, found(report)
    assert report.skipped == ()
    assert "order in time" in report.checks
    assert ("sealed part" in report.checks) == (role == "competition")


def test_a_variable_too_many(plant):
    def change(groups, attributes):
        groups["trials"]["frame_trial_ts"] = ("trial", np.random.default_rng(0).random(groups["trials"].sizes["trial"]))

    report = plant(change)
    assert "trials/frame_trial_ts/zarr.json | is not on the allow-list" in found(report)
    with pytest.raises(OrganiserError, match="leak audit failed"):
        report.refuse_leaks()


def test_a_group_too_many(plant):
    report = plant(lambda groups, attributes: groups.update(traces=xr.Dataset({"dff": ("time", np.zeros(3))})))
    assert "traces/zarr.json | is not on the allow-list" in found(report)


@pytest.mark.parametrize("where", ["root", "group", "variable"])
def test_times_in_attributes(plant, where):
    def change(groups, attributes):
        target = {"root": attributes, "group": groups["trials"].attrs, "variable": groups["trials"]["image_id"].attrs}[where]
        target["onset"] = [1.0, 2.0, 3.0]

    assert not plant(change).passed


def test_a_long_text_in_an_allowed_attribute(plant):
    assert "attribute indicator" in found(plant(lambda groups, attributes: attributes.update(indicator="0.1 1.2 2.3 " * 10)))


def test_behaviour_left_in_a_sensorium_session(plant):
    def change(groups, attributes):
        groups["trials"]["behavior"] = (("trial", "behavior_channel"), np.full((groups["trials"].sizes["trial"], 3), np.nan, np.float32))

    assert "trials/behavior" in found(plant(change))


def test_one_hidden_response_visible(plant):
    def change(groups, attributes):
        response = groups["trials"]["response"].values
        response[np.flatnonzero(read_array_tier(groups) == "final_test")[0], 4] = 1.5

    assert "1 responses of hidden tiers are visible" in found(plant(change, track="sensorium+"))


def test_values_smuggled_inside_nans(plant):
    def change(groups, attributes):
        response = groups["trials"]["response"].values
        hidden = np.flatnonzero(read_array_tier(groups) == "test")
        response.view(np.uint32)[hidden[:, None], np.arange(3)] += np.arange(len(hidden), dtype=np.uint32)[:, None] + 1

    assert "responses of hidden tiers are visible" in found(plant(change))


def test_hidden_responses_zero_filled_are_not_hidden(plant):
    def change(groups, attributes):
        groups["trials"]["response"].values[read_array_tier(groups) == "test"] = 0.0

    assert "are visible" in found(plant(change))


def test_trials_in_the_order_of_time(plant, workspace):
    def change(groups, attributes):
        _, record = Series(workspace.lab, "sessions/1-2-3").latest(SessionRecord)
        trials = groups["trials"]
        place = released_order(record.lab_digest, trials.sizes["trial"])
        groups["trials"] = trials.isel(trial=np.argsort(place)).assign_coords(trial_id=trials["trial_id"])

    text = found(plant(change))
    assert "order of the file | follows the order of presentation" in text
    assert "were shown one after the other" in text


def test_image_ids_numbered_in_the_order_shown(workspace, raw_of, publish):
    raw = raw_of()
    ids, first = np.unique(raw.stimulus.image_id, return_index=True)
    number = dict(zip(ids[np.argsort(first)].tolist(), range(len(ids)), strict=True))
    images = np.array(sorted(number, key=number.__getitem__))
    rows = np.searchsorted(raw.images.image_ids, images)
    raw = replace(
        raw,
        stimulus=replace(raw.stimulus, image_id=np.array([number[int(image)] for image in raw.stimulus.image_id])),
        images=StimulusImages(np.arange(len(ids)), raw.images.images[rows]),
        image_sets={number[image]: name for image, name in raw.image_sets.items()},
    )
    record = publish(raw)
    assert "trials/image_id | follows the order of presentation" in found(audit_session(workspace, record.name))


def test_trials_sorted_by_a_measurement(plant):
    def change(groups, attributes):
        trials = groups["trials"]
        order = np.argsort(np.nan_to_num(trials["behavior"].values[:, 0]), kind="stable")
        groups["trials"] = trials.isel(trial=order).assign_coords(trial_id=trials["trial_id"])

    assert "behavior, column 0 | rises or falls" in found(plant(change, track="sensorium+"))


def test_trials_sorted_by_tier(plant):
    def change(groups, attributes):
        trials = groups["trials"]
        order = np.argsort(read_array_tier(groups), kind="stable")
        groups["trials"] = trials.isel(trial=order).assign_coords(trial_id=trials["trial_id"])

    text = found(plant(change))
    assert "trials/tier | rises or falls" in text
    assert "not the one drawn from the lab part" in text
    assert "disagree about the hidden trials" in text


def test_trial_ids_that_are_places_in_time(plant):
    def change(groups, attributes):
        count = groups["trials"].sizes["trial"]
        groups["trials"] = groups["trials"].assign_coords(trial_id=("trial", np.random.default_rng(0).permutation(count)))

    assert "is not 0, 1, 2" in found(plant(change))


def test_statistics_of_all_trials(plant):
    def change(groups, attributes):
        groups["statistics"]["response_mean"].values[:] = np.nanmean(groups["trials"]["response"].values, axis=0)

    assert "statistics/response_mean | is not that of the training trials alone" in found(plant(change))


def test_image_statistics_of_all_images(plant):
    def change(groups, attributes):
        groups["statistics"]["image_mean"] = groups["statistics"]["image_mean"] + 0.5

    assert "statistics/image_mean" in found(plant(change))


def test_a_session_that_says_it_is_open(plant):
    assert "another session, role or track" in found(plant(lambda groups, attributes: attributes.update(role="open", track="")))


def test_a_pointer_that_says_more(workspace, published):
    record = published()
    Series(workspace.open, f"sessions/{record.name}").append(record)
    assert "holds lab_digest, recording_digest" in found(audit_session(workspace, record.name))


def test_a_file_beside_the_arrays_and_a_differing_copy_of_the_metadata(workspace, published):
    record = published()
    with stage(workspace.open) as staged:
        staged.write_tree(open_dataset(workspace.open, record.open_digest).load())
        staged.add("trials/response/onsets.csv", b"1,2,3")
        changed = record.model_copy(update={"open_digest": staged.seal().digest})
    bind(workspace, changed)
    Series(workspace.open, f"sessions/{record.name}").append(changed.published())
    assert "trials/response/onsets.csv | is not on the allow-list" in found(audit_session(workspace, record.name))


def test_without_lab_and_sealed_parts_the_audit_says_what_it_skipped(workspace, published):
    record = published()
    workspace.sealed.remove("bindings")
    report = audit_session(workspace, record.name)
    assert report.passed
    assert len(report.skipped) == 1
    assert "private record" in report.skipped[0]
    assert json.loads(report.model_dump_json())["open_digest"] == record.open_digest


def read_array_tier(groups) -> np.ndarray:
    return read_array(xr.DataTree.from_dict(groups), "trials/tier")
