"""The recipe's table of the algorithm: presets over parts that all algorithms share.

A type is an advantage estimator with the parts that its paper gives it. `docs/algorithms` has a page for each.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from zerosearch.training.recipe_section import Count, NonNegativeFloat, Positive, PositiveFloat, Section, Share

Type = Literal[
    "reinforce",
    "reinforce_positive",
    "reinforce_lenient",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "rloo",
    "grpo",
    "dr_grpo",
    "gspo",
    "ppo",
]
Estimator = Literal["none", "batch", "group", "leave_one_out", "critic"]
ADAMW_BETAS = (0.9, 0.999)
"""Of both trainers. A short memory of the squared gradient lets a quiet stretch be followed by a leap."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What a type brings: its name, what it subtracts from the reward, and the parts that differ from GRPO's."""

    title: str
    estimator: Estimator
    parts: dict[str, Any] = field(default_factory=dict)


KL_IN_REWARD = {"kl_in": "reward", "kl_estimator": "k1"}
PRESETS: dict[str, Preset] = {
    "reinforce": Preset("REINFORCE", "none", {"normalize_std": False}),
    "reinforce_positive": Preset("REINFORCE from successes", "group", {"normalize_std": False, "negative": 0.0}),
    "reinforce_lenient": Preset("lenient REINFORCE", "group", {"normalize_std": False, "negative": 0.5}),
    "reinforce_plus_plus": Preset("REINFORCE++", "none", {"normalize_std": False, "whiten": True, **KL_IN_REWARD}),
    "reinforce_plus_plus_baseline": Preset(
        "REINFORCE++ with a baseline", "group", {"normalize_std": False, "whiten": True, "kl_estimator": "k2"}
    ),
    "rloo": Preset("RLOO", "leave_one_out", {"normalize_std": False, "aggregation": "fixed_length", **KL_IN_REWARD}),
    "grpo": Preset("GRPO", "group"),
    "dr_grpo": Preset(
        "Dr. GRPO", "group", {"normalize_std": False, "aggregation": "fixed_length", "kl_coefficient": 0.0}
    ),
    "gspo": Preset(
        "GSPO",
        "group",
        {
            "ratio": "sequence",
            "aggregation": "sequence_mean",
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            "kl_coefficient": 0.0,
            "recompute": True,
        },
    ),
    "ppo": Preset("PPO", "critic", {"normalize_std": False, "whiten": True, **KL_IN_REWARD}),
}


class Critic(Section):
    """PPO's critic: a copy of the policy's body with a value head."""

    learning_rate: PositiveFloat = 1e-5
    """Its learning rate, from the first step on."""
    warmup_steps: Count = 0
    """First steps in which only the critic learns."""
    clip: PositiveFloat = 0.2
    """A value counts as at most this far from the value before the step's updates."""
    gae_lambda: Share = 1.0
    """λ of generalised advantage estimation: 1 trusts the reward, 0 the critic's next value."""


class Algorithm(Section):
    """How rewards become an update. A type sets the defaults of some parts; `docs/algorithms` says which."""

    type: Type = "reinforce_lenient"
    """The advantage estimator, and the defaults of the parts below."""
    baseline: Literal["none", "group", "batch"] = "none"
    """What REINFORCE subtracts from the reward: nothing, the mean of the question's group or of the batch."""
    normalize_std: bool = True
    """Divide by the group's standard deviation, where the group's mean is subtracted."""
    whiten: bool = False
    """Shift and scale the advantages of all policy tokens of a step to mean 0 and standard deviation 1."""
    negative: NonNegativeFloat = 1.0
    """What an advantage below zero counts: 1 in full; 0 = only what did better than expected teaches."""
    discount: Share = 1.0
    """γ for each policy token between an action and its reward, in estimators that do not compare within groups."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio of each token, or the geometric mean over its episode."""
    clip_low: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Field(ge=0.0)] = 0.2
    """The probability ratio is clipped above at 1 + clip_high."""
    dual_clip: NonNegativeFloat = 0.0
    """Where the advantage is negative, a ratio above this one counts as this one; above 1, 0 = off."""
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    """Mean over tokens, mean over episodes of their tokens' mean, or of their tokens' sum by a constant."""
    fixed_length: Count = 0
    """That constant; 0 = the tokens that an episode's turns may hold."""
    kl_coefficient: NonNegativeFloat = 0.001
    """Weight of the pull towards the reference policy; 0 = none, and no reference is held."""
    kl_in: Literal["loss", "reward"] = "loss"
    """The divergence is added to the loss, or taken off the reward of each token."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """With d = log p_ref - log p: -d (in the reward only), d^2 / 2 or exp(d) - d - 1."""
    kl_target: NonNegativeFloat = 0.0
    """In the reward: the coefficient follows the divergence for each token towards this one; 0 = it is fixed."""
    kl_horizon: Positive = 10000
    """Episodes over which the coefficient follows; more than a fifth of a step's."""
    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of a bonus for the entropy of the policy's next token."""
    llds_coefficient: NonNegativeFloat = 0.0
    """Weight of the fall in likelihood of turns whose advantage is not negative; the paper's is 0.2, 0 = off. It
    recomputes: a sampler's probabilities differ from the trainer's by more than turns fall in an update."""
    recompute: bool = False
    """Start the ratio from probabilities that the trainer computes before its first update, not the sampler's."""
    correction: Literal["none", "token", "sequence"] = "none"
    """Weigh by the trainer's probability over the sampler's, of a token or an episode; this recomputes."""
    correction_limit: PositiveFloat = 2.0
    """The largest such weight."""
    mini_batches: Positive = 1
    """Updates per pass over a step's episodes, with as many groups each; every token weighs the same in all of them."""
    epochs: Positive = 1
    """Passes over a step's episodes."""
    critic: Critic = Critic()

    @property
    def title(self) -> str:
        return 'algorithm.baseline = "group"' if self.type == "reinforce" else PRESETS[self.type].title

    @property
    def estimator(self) -> Estimator:
        return self.baseline if self.type == "reinforce" else PRESETS[self.type].estimator

    @property
    def compares_samples(self) -> bool:
        return self.estimator in ("group", "leave_one_out")

    @property
    def learns_without_advantage(self) -> bool:
        """Whether the loss says something of a token whose advantage is zero."""
        pull = self.kl_coefficient > 0 and self.kl_in == "loss"
        return pull or self.entropy_coefficient > 0 or self.llds_coefficient > 0 or self.estimator == "critic"

    @property
    def recomputes(self) -> bool:
        """Whether the trainer computes the probabilities that the ratio starts from."""
        return self.recompute or self.correction != "none" or self.llds_coefficient > 0

    @model_validator(mode="before")
    @classmethod
    def _parts_of_the_type(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("type"), str) and given["type"] in PRESETS:
            return PRESETS[given["type"]].parts | given
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.type != "reinforce" and self.baseline != "none":
            raise ValueError(
                f'algorithm.baseline is "{self.baseline}", but {self.title} brings its own; remove it or set '
                'algorithm.type = "reinforce"'
            )
        if 0 < self.dual_clip <= 1:
            raise ValueError(
                f"algorithm.dual_clip is {self.dual_clip:g}, but it bounds ratios above 1; set it to 3, for instance, "
                "or to 0 for none"
            )
        if self.kl_coefficient and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                'algorithm.kl_estimator is "k1", whose mean gradient in the loss is zero, so that it pulls nowhere; '
                'set it to "k2" or "k3", or algorithm.kl_in = "reward"'
            )
        if self.kl_coefficient and self.kl_in == "reward" and self.normalize_std and self.compares_samples:
            raise ValueError(
                'algorithm.kl_in is "reward", but algorithm.normalize_std makes whole advantages of the small '
                "divergences that tell a group's equal rewards apart; set algorithm.normalize_std = false, or "
                'algorithm.kl_in = "loss"'
            )
        if self.kl_target and (self.kl_in != "reward" or not self.kl_coefficient):
            raise ValueError(
                "algorithm.kl_target is set, but only a coefficient of the reward follows it; set algorithm.kl_in = "
                '"reward" and algorithm.kl_coefficient above 0, or algorithm.kl_target = 0'
            )
        return self
