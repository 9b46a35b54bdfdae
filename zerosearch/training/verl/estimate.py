"""What a recipe will take: trajectories, searches, tokens, GPU hours, memory, and what a paid search would have cost.

`docs/guides/sizing.md` has the formulas, what they assume and what they were held against. Nothing is loaded for them.
"""

from dataclasses import dataclass, replace
from typing import Self

from zerosearch.agent.protocol import TagProtocol
from zerosearch.errors import UserError
from zerosearch.simulation.template import Template, load_template
from zerosearch.training.engines import make_template
from zerosearch.training.recipe import Recipe
from zerosearch.training.verl.shape import Shape, shape_of
from zerosearch.training.verl.translate import sampler_dtype

QUESTION = "Who was the first coach of the team that won the national championship in 1986?"
"""Stands for a question where its length counts."""
CHARACTERS_PER_TOKEN = 4
PRICE, PRICED = 586.7 / 64_000, "SerpAPI, May 2025: $586.70 for 64,000 searches, arXiv 2505.04588, table 8"
"""Dollars for a search at a paid API."""
RATE = 5.6e12
"""Floating-point operations in a second of a GPU, in the one published run; see `docs/guides/sizing.md`."""
LAYER_BYTES, KEPT_BYTES, LOGIT_BYTES = 34, 2, 8
"""Activations: of a token in a layer by its width (arXiv 2205.05198), what is kept of it when they are computed again,
and of a token at the output layer for each word of the vocabulary."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What an episode is taken to be like, in searches and tokens. A run's metrics say what it was."""

    searches: float = 2.0
    turn: float = 100.0
    document: float = 45.0

    @classmethod
    def at_most(cls, recipe: Recipe) -> Self:
        """The limits of the recipe."""
        documents = recipe.search.k
        return cls(recipe.agent.max_turns, recipe.agent.max_tokens_per_turn, recipe.simulation.max_tokens / documents)

    def within(self, recipe: Recipe) -> Self:
        most = self.at_most(recipe)
        return replace(
            self,
            searches=min(self.searches, most.searches),
            turn=min(self.turn, most.turn),
            document=min(self.document, most.document),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What a recipe does. Tokens: read and written by the policy, asked of the simulator and written by it."""

    trajectories: int
    searches: float
    trajectory_tokens: float
    policy_tokens: float
    asked_tokens: float
    page_tokens: float

    @classmethod
    def of(cls, recipe: Recipe, habits: Habits) -> Self:
        training, agent = recipe.training, recipe.agent
        trajectories = training.steps * training.questions_per_step * training.samples_per_question
        searches = trajectories * habits.searches
        written = (habits.searches + 1) * habits.turn
        page = habits.document * recipe.search.k
        shown = habits.searches * min(page, agent.max_observation_tokens)
        length = min(_opening_tokens(recipe) + written + shown, agent.max_length)
        mixed = recipe.search.mixed
        simulated = 1 - (mixed.start + mixed.end) / 2 if recipe.search.type == "mixed" else 1.0
        pages = simulated * searches if recipe.simulates else 0.0
        return cls(
            trajectories,
            searches,
            trajectories * length,
            trajectories * written,
            pages * _asking_tokens(recipe),
            pages * page,
        )


def estimate(recipe: Recipe) -> list[str]:
    """Lines for the plan: what the recipe will take, and at most."""
    habits = Habits().within(recipe)
    work, most = Work.of(recipe, habits), Work.of(recipe, Habits.at_most(recipe))
    lines = [
        f"# estimate, at {habits.searches:g} searches and {habits.turn:g} tokens a turn (docs/guides/sizing.md)",
        f"# trajectories: {work.trajectories:,}",
        f"# searches: {work.searches:,.0f}, at most {most.searches:,.0f}",
        f"# policy tokens: {_millions(work.policy_tokens)} written, {_millions(work.trajectory_tokens)} trained on or "
        f"read, at most {_millions(most.trajectory_tokens)}",
    ]
    if recipe.simulates:
        lines.append(
            f"# simulator tokens: {_millions(work.asked_tokens)} read, {_millions(work.page_tokens)} written, "
            f"at most {_millions(most.asked_tokens)} and {_millions(most.page_tokens)}"
        )
    if work.searches:
        lines.append(f"# the same searches at a paid API: ${work.searches * PRICE:,.0f} ({PRICED})")
    policy = shape_of(recipe.model.name)
    if policy is None:
        return [*lines, f"# memory and time: not known, since nothing tells the size of {recipe.model.name}"]
    return [*lines, *_time(recipe, work, policy), *memory_lines(recipe, policy)]


def operations(recipe: Recipe, work: Work, policy: Shape, simulator: Shape | None) -> tuple[float, float]:
    """Floating-point operations of the trainer, sampling included, and of the simulator's model."""
    algorithm, training = recipe.algorithm, recipe.training
    again = 2 if training.gradient_checkpointing else 0
    passes = 2 + (4 if recipe.lora.rank else 6) + again  # to sample, and to learn
    passes += 2 * ((algorithm.kl_coefficient > 0) + algorithm.recomputes)
    passes += (2 + 6 + again) * (algorithm.estimator == "critic")
    written = work.asked_tokens + work.page_tokens
    return passes * policy.parameters * work.trajectory_tokens, 2 * simulator.parameters * written if simulator else 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each GPU: weights, gradients, moments of the optimiser, reference, critic, activations; of the sampler,
    its weights, and keys and values of a token."""

    weights: float
    gradients: float
    moments: float
    reference: float
    critic: float
    activations: float
    sampler: float
    token: float

    @property
    def resident(self) -> float:
        """What stays while the GPU samples, unless it is offloaded: there are no gradients then."""
        return self.weights + self.moments + self.reference + self.critic

    @property
    def learning(self) -> float:
        """While a micro-batch is learned from; the critic learns at another time than the policy.

        The critic has no adapters: it holds weights, two moments, and while it learns gradients, all of one size.
        """
        return self.resident + max(self.gradients, self.critic / 3) + self.activations

    @property
    def handing_over(self) -> float:
        """While the trainer's weights go to the sampler: a model with adapters is put on the GPU whole for that, also
        where it is offloaded, one without tensor by tensor."""
        return self.sampler + self.weights


def memory(recipe: Recipe, policy: Shape) -> Memory:
    """The memory of each GPU by part."""
    verl, training, algorithm, rank = recipe.verl, recipe.training, recipe.algorithm, recipe.lora.rank
    gpus = verl.nodes * verl.gpus_per_node
    held = 4 * policy.parameters / gpus
    learned = 4 * policy.adapters(rank) / gpus if rank else held
    longest = recipe.agent.max_length
    tokens = verl.micro_batch * longest or max(longest, training.micro_batch_tokens)
    again = training.gradient_checkpointing
    layers = policy.layers * KEPT_BYTES + LAYER_BYTES if again else policy.layers * LAYER_BYTES
    width = 2 if sampler_dtype(recipe) == "bfloat16" else 4
    return Memory(
        weights=held + (learned if rank else 0.0),
        gradients=learned,
        moments=2 * learned,
        reference=held if algorithm.kl_coefficient and not rank else 0.0,
        critic=3 * held if algorithm.estimator == "critic" else 0.0,
        activations=tokens * (policy.hidden * layers + policy.vocabulary * LOGIT_BYTES),
        sampler=width * policy.parameters / verl.tensor_parallel,
        token=policy.kv_bytes * width / 2 / verl.tensor_parallel,
    )


def memory_lines(recipe: Recipe, policy: Shape) -> list[str]:
    """The memory of each GPU by part, and of how much a GPU must have."""
    parts, share = memory(recipe, policy), recipe.verl.memory_share
    named = {name: getattr(parts, name) for name in Memory.__slots__ if name not in ("sampler", "token")}
    said = ", ".join(f"{name} {_gigabytes(value)}" for name, value in named.items() if value)
    stays = 0.0 if recipe.verl.offload else parts.resident / (1 - share)
    one = (parts.sampler + recipe.agent.max_length * parts.token) / share
    handing = parts.handing_over if recipe.lora.rank else 0.0
    return [
        f"# memory of a GPU, learning: {said}: {_gigabytes(parts.learning)}",
        f"# memory of a GPU, sampling: weights {_gigabytes(parts.sampler)} and {parts.token * 1000 / 1e9:.3f} GB for "
        f"1,000 tokens in {share:g} of it, beside {_gigabytes(0.0 if recipe.verl.offload else parts.resident)}",
        f"# a GPU must have: {_gigabytes(max(parts.learning, stays, one, handing))}, and what CUDA itself takes "
        "(never measured on a GPU)",
    ]


def _time(recipe: Recipe, work: Work, policy: Shape) -> list[str]:
    simulator = None
    if recipe.simulates:
        simulator = policy if recipe.policy_simulates else shape_of(recipe.simulation.model)
    learning, simulating = operations(recipe, work, policy, simulator)
    pages = f"{_hours(simulating)} for the simulator"
    if recipe.simulates and not simulator:
        pages = f"unknown for the simulator, since nothing tells the size of {recipe.simulation.model}"
    rate = f"{RATE / 1e12:g} TFLOP/s a GPU as in the paper's run"
    return [f"# GPU hours: {_hours(learning)} for the policy, {pages}, at {rate}"]


def _opening_tokens(recipe: Recipe) -> float:
    """Tokens of the prompt that opens an episode."""
    protocol = TagProtocol(searches=recipe.search.type != "none")
    return len(protocol.completion_prompt(QUESTION)) / CHARACTERS_PER_TOKEN


def _asking_tokens(recipe: Recipe) -> float:
    """Tokens of a simulator's prompt, in the mean of useful and noisy ones."""
    template = _template(recipe)
    asked = [
        template.render(QUESTION, QUESTION, "Harold Henderson", noise, recipe.search.k) for noise in ("useful", "noisy")
    ]
    return sum(len(message["content"]) for messages in asked for message in messages) / 2 / CHARACTERS_PER_TOKEN


def _template(recipe: Recipe) -> Template:
    """The recipe's template, or that of its mode where the file is not there yet."""
    try:
        return make_template(recipe)
    except UserError:
        return load_template("sft" if recipe.simulation.mode == "sft" else "prompt")


def _hours(operations: float) -> str:
    return f"{operations / RATE / 3600:,.0f}"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.1f} M"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
