"""The table of legal changes is the design's, and nothing leaves an end."""

from flattengpt_core.progress import STAGES as CORE_STAGES
from jobs.states import STAGES, TERMINAL, TRANSITIONS, JobStatus, sources
from worker.reporter import WEIGHTS


def test_the_changes_of_the_design() -> None:
    written = {f"{before}->{after}" for before, following in TRANSITIONS.items() for after in following}
    assert written == {
        "queued->running",
        "queued->cancelled",
        "running->queued",
        "running->cancelling",
        "running->succeeded",
        "running->failed",
        "cancelling->cancelled",
        "cancelling->succeeded",
        "cancelling->failed",
    }


def test_each_state_has_a_line_and_the_three_ends_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED} == TERMINAL


def test_sources_is_the_table_read_backwards() -> None:
    assert set(sources(JobStatus.CANCELLED)) == {JobStatus.QUEUED, JobStatus.CANCELLING}
    assert sources(JobStatus.QUEUED) == [JobStatus.RUNNING]


def test_every_stage_has_its_share_of_the_progress() -> None:
    assert (*CORE_STAGES, "publishing") == STAGES
    assert tuple(WEIGHTS) == STAGES
    assert abs(sum(WEIGHTS.values()) - 1) < 1e-9
