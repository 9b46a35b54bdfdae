"""The search episode as an agent loop of verl."""

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.training.rewards import rewarded
from zerosearch.training.verl.data import read_question
from zerosearch.training.verl.served import Served, Session
from zerosearch.training.verl.workshop import Workshop, workshop

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an episode failed. ends_run: every other one would fail so, too."""

    sentence: str
    ends_run: bool


@dataclass(slots=True)
class Attempt:
    """What is known of an episode so far, whatever may stop it."""

    trajectory: Trajectory
    parts: dict[str, float] = field(default_factory=dict)
    session: Session | None = None
    shop: Workshop | None = None
    training: bool = True
    failure: Failure | None = None


class ZeroSearchAgentLoop(AgentLoopBase):
    """One episode of a row, made anew for each; what is costly is the process's `Workshop`.

    It never raises: an episode that fails, or whose search fails, comes back as one masked token with
    `extra_fields["error"]`. `extra_fields` hold the whole trajectory, what it earned and what the engine counted; the
    buffer (`buffer.py`) makes the step's figures of them.

    recipe, folder: path of the resolved recipe, and where the run was started, from the agent loop's YAML file.
    """

    def __init__(self, *args: Any, recipe: str, folder: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recipe, self._folder = recipe, folder

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Run the row's episode.

        row: the columns of the row; `extra_info["split"]` tells test rows, which are greedy and search with the engine
        of the recipe's evaluation. `global_steps` is the step of training.
        """
        attempt = Attempt(_unread(row))
        try:
            await self._episode(sampling_params, row, attempt)
        except Exception as error:
            log.exception("an episode failed")
            attempt.failure = Failure(_said(error), ends_run=isinstance(error, RunError | UserError))
        trajectory, failure, shop = attempt.trajectory, attempt.failure, attempt.shop
        versions = attempt.session.versions if attempt.session else []
        fields = {
            "trajectory": json.dumps(trajectory.to_json()),
            "parts": attempt.parts,
            "error": failure.sentence if failure else "",
            "ends_run": failure is not None and failure.ends_run,
            "worker": shop.name if shop else "",
            "counted": shop.counted(attempt.training) if shop else {},
            "oldest_page": shop.oldest_page if shop else "",
            "min_global_steps": min(versions, default=trajectory.step),
            "max_global_steps": max(versions, default=trajectory.step),
            "reward_extra_info": _scores(trajectory),
        }
        metrics = AgentLoopMetrics(
            generate_sequences=attempt.session.seconds if attempt.session else 0.0,
            tool_calls=sum(search.seconds for search in trajectory.searches),
        )
        prompt = len(trajectory.segments[0].token_ids) if trajectory.segments else 0
        ids, mask, log_probs = trajectory.token_ids, trajectory.loss_mask, trajectory.log_probs
        if failure:
            nothing = [self.tokenizer.eos_token_id]
            prompt, ids, mask, log_probs = 1, [*nothing, *nothing], [False, False], [0.0, 0.0]
        return AgentLoopOutput(
            prompt_ids=ids[:prompt],
            response_ids=ids[prompt:],
            response_mask=[int(own) for own in mask[prompt:]],
            response_logprobs=log_probs[prompt:],
            reward_score=0.0 if failure else sum(attempt.parts.values()),
            num_turns=len(trajectory.segments),
            metrics=metrics,
            extra_fields=fields,
        )

    async def _episode(self, sampling_params: dict[str, Any], row: dict[str, Any], attempt: Attempt) -> None:
        """Run the episode and reward it, and keep in `attempt` how far that came."""
        attempt.shop = shop = workshop(self._recipe, self._folder, self.rollout_config.agent.num_workers)
        recipe, extra, step = shop.recipe, row["extra_info"], int(row["global_steps"])
        attempt.training = training = extra["split"] != "test"
        seeded = recipe.verl.rollout == "local" or recipe.training.deterministic
        served = Served(self.server_manager, self.tokenizer, recipe.verl.rollout, sampling_params, seeded)
        attempt.session = served.session()
        sample = int(extra["first_sample"]) + int(row["session_id"])
        question = read_question(row["question"])
        attempt.trajectory = Trajectory(question, sample, step, ending="search_failed")
        agent = shop.agent(training, attempt.session, self.tokenizer, step, anew=served)
        attempt.trajectory = await agent.episode(question, sample, step)
        attempt.parts = await rewarded(attempt.trajectory, recipe)
        if attempt.trajectory.ending == "search_failed":
            attempt.failure = Failure(attempt.trajectory.searches[-1].error, ends_run=False)


def _unread(row: dict[str, Any]) -> Trajectory:
    """What stands in for the episode of a row until that is read."""
    question = Question(str(row.get("uid", "")), "", (), str(row.get("data_source", "")))
    return Trajectory(question, int(row.get("session_id", 0)), int(row.get("global_steps", 0)), ending="search_failed")


def _scores(trajectory: Trajectory) -> dict[str, float]:
    """What verl averages over its validation."""
    scored = score_trajectory(trajectory)
    return {"f1": scored.f1, "em": scored.em, "substring_em": scored.substring_em, "searches": float(scored.searches)}


def _said(error: Exception) -> str:
    if isinstance(error, RunError | UserError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
