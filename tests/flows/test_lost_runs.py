"""A run whose process ended with the services of its machine holds up no run after it."""

from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending, Running

from sensorium_pipeline.services import WORK_POOL, end_lost_runs


@flow
def night() -> None: ...


@task
def release() -> None: ...


def state_of(client: SyncPrefectClient, run: FlowRun) -> str | None:
    return client.read_flow_run(run.id).state_name


def test_the_next_night_begins_although_the_process_of_the_last_one_is_gone(prefect_api: str) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"), overwrite=True)
        deployed = client.create_deployment(client.create_flow_from_name("night"), "lost", concurrency_limit=1, work_pool_name=WORK_POOL)
        lost, following = (client.create_flow_run_from_deployment(deployed) for _ in range(2))
        for state in (Pending(), Running()):
            client.set_flow_run_state(lost.id, state)
        parent = client.create_task_run(release, lost.id, "release", state=Running())
        below = client.create_flow_run(night, parent_task_run_id=parent.id, state=Running())
        by_hand = client.create_flow_run(night, state=Running())
        client.set_flow_run_state(following.id, Pending())
        assert state_of(client, following) == "AwaitingConcurrencySlot"

        end_lost_runs(prefect_api)
        assert [state_of(client, run) for run in (lost, below)] == ["Crashed", "Crashed"]
        assert state_of(client, by_hand) == "Running"
        # Its worker may have said so of a run already, but not of those below.
        client.set_flow_run_state(below.id, Running(), force=True)
        end_lost_runs(prefect_api)
        assert state_of(client, below) == "Crashed"
        client.set_flow_run_state(following.id, Pending())
        assert state_of(client, following) == "Pending"
        end_lost_runs(prefect_api)  # of this test, lest it waits for ever
