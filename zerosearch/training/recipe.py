"""The recipe: everything that says what to train, as nested sections with one line for each key.

A recipe is a TOML file; each class below is one of its tables and each docstring under a field is that key's
reference. `zerosearch.training.recipe_file` reads recipes and writes them back.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from zerosearch.report.trackers import TrackerName
from zerosearch.training.recipe_algorithm import Algorithm
from zerosearch.training.recipe_health import Health
from zerosearch.training.recipe_remote import REMOTE, Retriever, SerpApi, address
from zerosearch.training.recipe_reward import Reward
from zerosearch.training.recipe_section import (
    Count,
    FilePath,
    FiniteFloat,
    NonEmptyPath,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    PositiveShare,
    Section,
    Share,
    listed,
)
from zerosearch.training.recipe_verl import Verl
from zerosearch.training.recipe_warm_start import WarmStart

Balance = Literal["none", "kind", "data_set"]
LATER_SEARCH_TYPES = ("dense",)
FETCHING = ("timeout", "retries", "outage", "cache", "offline")
"""Keys of `simulation` that, with the addresses, say how pages are fetched, and not what they are."""


class Model(Section):
    """The policy: the model that is trained."""

    name: NonEmptyPath = "embedded"
    """`embedded` (SmolLM2-135M-Instruct from the package registry), a hub id or a local folder."""
    prompt: NonEmptyPath = "chat"
    """`chat` (instruct models), `completion` (base models), or a file: a set with a `prompt` column, a saved prompt."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the forward and backward pass; weights stay float32. `auto` takes bfloat16 where it is fast."""
    sampler_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type in which the policy writes, in training and in tests; `auto`: that of `model.dtype`. Where the two differ,
    `algorithm.correction` weighs tokens by what learner and sampler think of them."""
    sampler: Literal["local", "vllm"] = "local"
    """What the policy writes with: this package's own sampler, or vLLM in this process, which must be installed."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the device's memory that vLLM may take for keys and values."""
    drafts: Count = 4
    """Most tokens that the local sampler drafts for a sequence in a step: fewer steps, the same samples; 0 = none."""

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, value: str) -> str:
        if value not in ("chat", "completion") and not value.endswith((".toml", ".parquet", ".jsonl", ".jsonl.gz")):
            raise ValueError(
                f'model.prompt is "{value}"; set it to "chat", "completion" or the path of a .toml, .parquet or .jsonl '
                "file"
            )
        return value


class Data(Section):
    """The questions."""

    train: NonEmptyPath = "world"
    """Training questions: `world`, a .parquet or .jsonl file, a folder that holds `train.jsonl`, or a hub name."""
    test: NonEmptyPath = "world"
    """Test questions: `world`, a .parquet or .jsonl file, a folder that holds `test.jsonl`, or a hub name."""
    train_limit: Count = 0
    """Training questions used, the same for every seed; 0 = all."""
    test_limit: Count = 0
    """Test questions evaluated, spread over the families; 0 = all."""
    balance: Balance = "none"
    """What comes equally often in training: `kind` or `data_set`, whose rare ones then repeat sooner; `none`: each
    question."""


class Mixed(Section):
    """Simulated and real search: `search.type` is `mixed`, and a share of the searches is real."""

    real: Literal["bm25", "retriever", "serpapi"] = "bm25"
    """The real engine."""
    start: Share = 0.0
    """Share of real searches at the first step; it goes evenly to `end`."""
    end: Share = 0.5
    """Share of real searches at the last step."""


class Search(Section):
    """The search engine that the policy meets in training."""

    type: Literal["simulated", "bm25", "retriever", "serpapi", "mixed", "none"] = "simulated"
    """`simulated` (written by a language model), `bm25`, `retriever`, `serpapi` (real ones), `mixed` or `none`."""
    k: Positive = 3
    """Documents on a page."""
    corpus: NonEmptyPath = "world"
    """Passages of the real engine: `world`, a .jsonl or .jsonl.gz file, or a folder of `zerosearch search index`."""
    failure_threshold: Share = 0.1
    """The run stops when more than this share of the episodes of a step or a test end because a search failed."""
    retriever: Retriever = Retriever()
    serpapi: SerpApi = SerpApi()
    mixed: Mixed = Mixed()

    @property
    def apart_from_fetching(self) -> "Search":
        """What determines the pages, without what says how engines behind HTTP are asked."""
        return self.model_copy(update={"retriever": Retriever(), "serpapi": SerpApi(engine=self.serpapi.engine)})

    @field_validator("type", mode="before")
    @classmethod
    def _available(cls, value: object) -> object:
        if value in LATER_SEARCH_TYPES:
            raise ValueError(
                f'search.type = "{value}" is not available in this version; use "simulated", "bm25", "retriever", '
                '"serpapi", "mixed" or "none"'
            )
        return value


class Kinds(Section):
    """What noisy documents are like, by weight; all 0: whatever the simulator writes when told to write noisily."""

    irrelevant: NonNegativeFloat = 0.0
    """Documents that answer another question, about nothing that this one names."""
    near_miss: NonNegativeFloat = 0.0
    """Documents about what the question names, without the answer."""
    contradicting: NonNegativeFloat = 0.0
    """Documents that give a wrong answer of the same type, as if it were right."""


class Noise(Section):
    """The share of noisy pages over training; exponential: start + (base^(i/m) - 1) / (base - 1) * (end - start)."""

    schedule: Literal["exponential", "linear", "constant", "random", "reverse", "adaptive"] = "exponential"
    """How the noise goes from `start` to `end`; `reverse` goes back, `adaptive` follows the reward."""
    start: Share = 0.0
    """Share of noisy pages at the first step; `constant` stays there."""
    end: Share = 0.5
    """Share of noisy pages at the last step."""
    base: PositiveFloat = 4.0
    """How late the noise of `exponential` and `reverse` comes: above 1 late, 1 evenly, below 1 early."""
    target: FiniteFloat = 0.5
    """Mean reward of a step that `adaptive` aims at: more noise above it, less below."""
    max_change: Share = 0.02
    """By how much the noise of `adaptive` changes after a step at most."""
    per: Literal["page", "document"] = "page"
    """`page` (all documents of a page alike, as in the paper) or `document` (mixed pages, as real engines return)."""
    share: Literal["sample", "group"] = "sample"
    """Who meets the same noise at the same turn: each `sample` for itself, or all samples of a question (`group`)."""
    kinds: Kinds = Kinds()


class Lora(Section):
    """Low-rank adapters beside a model's linear layers, trained in place of its weights."""

    rank: Count = 0
    """Rank of the adapters; 0 = none, all weights are trained."""
    alpha: PositiveFloat = 32.0
    """The adapters' part is scaled by alpha / rank."""


class Tuning(Section):
    """Tuning the simulator on pages that the real engine found for training questions (mode `sft`)."""

    enabled: bool = False
    """Tune `simulation.model` before training; leave off for a simulator that is tuned already."""
    pages: Positive = 512
    """Labelled pages to learn from."""
    epochs: Positive = 1
    """Passes over the pages."""
    batch_size: Positive = 8
    """Pages in one update."""
    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate."""
    max_tokens: Positive = 1024
    """Tokens of a page with its prompt; longer ones are left out."""
    answer_weight: Positive = 1
    """How often the tokens of the answer that a useful page is to hold count in the loss."""
    save_every: Count = 50
    """Updates between checkpoints of `zerosearch simulate tune`; 0 = none."""
    lora: Lora = Lora()


class Simulation(Section):
    """The simulator: the language model that plays the search engine."""

    mode: Literal["prompt", "sft", "self"] = "prompt"
    """`prompt` (an instruction and a worked example), `sft` (a model tuned to write pages) or `self` (the policy
    writes the pages that it reads, by instruction; `model` is then of no account)."""
    frozen: bool = False
    """In mode `self`: the policy as it was before reinforcement writes the pages, not as it is now."""
    model: FilePath = "embedded"
    """`embedded`, a hub id, a local folder, or the name under which a server serves it."""
    url: Annotated[list[str], BeforeValidator(listed)] = []  # noqa: RUF012 (pydantic copies it)
    """Base URLs of OpenAI-compatible servers, the least loaded is used; empty = the model runs in this process."""
    template: FilePath = ""
    """File with a prompt template of one's own; empty = the built-in one of `mode`."""
    temperature: NonNegativeFloat = 0.8
    """Sampling temperature of the pages."""
    max_tokens: Positive = 160
    """Tokens of a page at most."""
    timeout: PositiveFloat = 60.0
    """Seconds until a call to a server counts as failed."""
    retries: Count = 3
    """Further tries of a page that servers fail to write or leave empty, before it counts as failed or as empty."""
    concurrency: Positive = 32
    """Calls under way at once."""
    outage: NonNegativeFloat = 300.0
    """Seconds that pages wait while all servers are away; then the run stops, and can be resumed."""
    cache: FilePath = ""
    """Folder that keeps the pages, for this run and others to take again; empty = none."""
    offline: bool = False
    """Take all pages from `cache`; one that is not there stops the run."""
    withhold: Literal["hops", "judge", "never"] = "hops"
    """For which queries the golden answer is kept from the model: those that are not about the last of the record's
    `hops`; without hops, those that the model calls a step on the way (`judge`); or `never`, as in the paper."""
    repair: Literal["none", "drop", "rewrite"] = "none"
    """What happens to pages with leaks, refusals or copies: nothing, such documents are left out whole (`drop`), or
    the page is written again, once, before that (`rewrite`; so is one that lacks documents or its answer)."""
    noise: Noise = Noise()
    tuning: Tuning = Tuning()

    @property
    def apart_from_fetching(self) -> "Simulation":
        """What determines the pages, without what says how they are fetched."""
        fetching = {name: Simulation.model_fields[name].default for name in FETCHING}
        return self.model_copy(update={"url": ["served"] if self.url else [], **fetching})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for url in self.url:
            address("simulation.url", url, "http://127.0.0.1:8000/v1", "OPENAI_API_KEY")
        if not self.model and not self.url:
            raise ValueError(
                "simulation.model is empty and simulation.url names no server; set one of the two, "
                'for instance simulation.model = "embedded"'
            )
        if self.offline and not self.cache:
            raise ValueError(
                "simulation.offline is true, but simulation.cache names no folder to take pages from; set it, or "
                "simulation.offline = false"
            )
        if self.cache and self.mode == "self" and not self.frozen:
            raise ValueError(
                "simulation.cache is set, but the policy that writes the pages changes with every step; empty it, or "
                "set simulation.frozen = true"
            )
        if self.mode == "self" and self.url:
            raise ValueError(
                'simulation.mode is "self", but simulation.url names a server; empty simulation.url, or set '
                'simulation.mode = "prompt"'
            )
        if self.frozen and self.mode != "self":
            raise ValueError(
                f'simulation.frozen is true, but simulation.mode is "{self.mode}"; set simulation.mode = "self" or '
                "simulation.frozen = false"
            )
        if self.tuning.enabled and self.url:
            raise ValueError(
                "simulation.tuning.enabled is true, but a model behind simulation.url cannot be tuned from "
                "here; set simulation.tuning.enabled = false or empty simulation.url"
            )
        if self.tuning.enabled and self.mode != "sft":
            raise ValueError(
                f'simulation.tuning.enabled is true, but simulation.mode is "{self.mode}"; '
                'set simulation.mode = "sft" or simulation.tuning.enabled = false'
            )
        return self


class Agent(Section):
    """The limits of an episode."""

    max_turns: Count = 4
    """Searches allowed; after the last one the policy is told to answer."""
    max_tokens_per_turn: Positive = 64
    """Tokens that the policy may write in one turn."""
    max_observation_tokens: Positive = 256
    """Tokens of a page shown to the policy; what is longer is cut."""
    max_length: Positive = 1024
    """Tokens of a whole trajectory, prompt included; the policy must answer before they are used up."""

    @model_validator(mode="after")
    def _one_search_fits(self) -> Self:
        needed = 2 * self.max_tokens_per_turn + self.max_observation_tokens
        if self.max_turns and self.max_length <= needed:
            raise ValueError(
                f"agent.max_length is {self.max_length}, too short for a prompt, one search and an answer; "
                f"set it well above {needed} (2 * agent.max_tokens_per_turn + agent.max_observation_tokens)"
            )
        return self


class Training(Section):
    """Reinforcement learning: how much, how fast, and what is kept."""

    steps: Count = 200
    """Steps of reinforcement; 0 = none."""
    questions_per_step: Positive = 8
    """Questions drawn in each step."""
    samples_per_question: Positive = 8
    """Episodes per question: the size of a group."""
    resample: Count = 0
    """Questions drawn again in a step, at most, in place of groups without spread."""
    ahead: bool = False
    """Sample the next step while the policy learns from this one, with weights that are one step old; a step whose
    sampling failed is sampled anew on `resume`, with the newest weights and so to other bits."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the policy in training."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate."""
    warmup_steps: Count = 0
    """Steps over which the learning rate grows from zero to its peak."""
    final_rate: PositiveShare = 1.0
    """Share of the peak learning rate at the last step, to which it falls along half a cosine after the warm-up; 1 = it
    stays at its peak."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is scaled down to this norm where it is longer."""
    micro_batch_tokens: Positive = 2048
    """Tokens in one forward and backward pass; lower it to save memory."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    save_every: Count = 10
    """Steps between checkpoints; the last step is always saved. 0 = only the last."""
    keep: Positive = 1
    """Checkpoints kept; older ones are deleted."""
    deterministic: bool = False
    """Only operations that give the same bits each time: a resumed run ends with those of an unbroken one, unless pages
    come from a server, whose pace decides which requests share a batch. The local trainer refuses it on a GPU."""
    threads: Count = 0
    """CPU threads; 0 = all cores."""
    workers: Positive = 1
    """Processes that play the episodes of training and test, each with its part of the threads; 1 = the one that
    learns."""


class Evaluation(Section):
    """The test with the real engine: greedy, every question counted."""

    engine: Literal["bm25", "retriever", "serpapi", "none"] = "bm25"
    """Engine of the test: `bm25` over `search.corpus`, `retriever`, `serpapi` or `none`."""
    k: Positive = 3
    """Documents on a page."""
    batch: Positive = 32
    """Episodes under way at once."""
    untrained: bool = True
    """Evaluate the model as it came, too."""
    untrained_limit: Count = 0
    """Test questions that it answers, the first ones, where a warm start follows; 0 = all. Without a warm start RL is
    compared with it, on all."""
    warm_start: bool = True
    """Evaluate the model after the warm start, too."""
    trained: bool = True
    """Evaluate the trained policy; `zerosearch eval` can do so later."""


class Report(Section):
    """What a run shows."""

    live: bool = True
    """A live panel on a terminal; plain lines elsewhere, or when false."""
    examples: Annotated[int, Field(ge=0, le=3)] = 3
    """Example trajectories printed at the end: right ones of one and of two hops, and a failure."""
    trackers: Annotated[list[TrackerName], BeforeValidator(listed)] = []  # noqa: RUF012
    """What gets the figures of each step, besides the run folder; on verl, too. `verl.loggers` are verl's own."""


class Recipe(Section):
    """A whole recipe."""

    trainer: Literal["local", "verl"] = "local"
    """`local`: one machine, CPU or one GPU; `verl`: many GPUs and machines."""
    seed: Count = 0
    """Seed of everything that is drawn."""
    output: FilePath = ""
    """The run folder; empty = runs/<recipe>-<seed>."""
    resume: bool = False
    """Go on with the run that the output folder holds, if it does; else an existing run is an error."""
    model: Model = Model()
    data: Data = Data()
    search: Search = Search()
    simulation: Simulation = Simulation()
    agent: Agent = Agent()
    warm_start: WarmStart = WarmStart()
    training: Training = Training()
    lora: Lora = Lora()
    algorithm: Algorithm = Algorithm()
    reward: Reward = Reward()
    health: Health = Health()
    evaluation: Evaluation = Evaluation()
    report: Report = Report()
    verl: Verl = Verl()

    @property
    def policy_tokens(self) -> int:
        """Tokens that an episode's turns may hold together."""
        return (self.agent.max_turns + 1) * self.agent.max_tokens_per_turn

    @property
    def simulates(self) -> bool:
        """Whether a simulator writes pages in training."""
        return self.search.type in ("simulated", "mixed")

    @property
    def learns(self) -> bool:
        """Whether the policy ends as another one than `model.name`."""
        return self.warm_start.enabled or self.training.steps > 0

    @property
    def tunes_simulator(self) -> bool:
        """Whether a simulator is tuned before training."""
        return self.simulates and self.simulation.tuning.enabled and self.training.steps > 0

    @property
    def untrained_limit(self) -> int:
        """Test questions for the model as it came; 0 = all."""
        return self.evaluation.untrained_limit if self.warm_start.enabled else 0

    @property
    def policy_simulates(self) -> bool:
        """Whether the policy as it is now writes the pages that it reads."""
        return self.simulates and self.simulation.mode == "self" and not self.simulation.frozen

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        training, algorithm = self.training, self.algorithm
        if algorithm.compares_samples and training.samples_per_question < 2:
            raise ValueError(
                f"training.samples_per_question is {training.samples_per_question}, but {algorithm.title} compares the "
                "samples of a question; set it to 2 or more"
            )
        if training.ahead and algorithm.recomputes and algorithm.correction == "none":
            raise ValueError(
                "training.ahead samples with older weights, and algorithm.recompute or llds_coefficient starts the "
                "ratio at newer ones, so that nothing weighs the difference; set algorithm.correction = "
                '"token" or "sequence", or algorithm.recompute = false and llds_coefficient = 0'
            )
        for hindrance in self._keeps_one_process() if training.workers > 1 else ():
            raise ValueError(f"training.workers is {training.workers}, but {hindrance}; set training.workers = 1")
        if training.questions_per_step % algorithm.mini_batches:
            raise ValueError(
                f"algorithm.mini_batches is {algorithm.mini_batches}, which does not divide "
                f"training.questions_per_step ({training.questions_per_step}); choose a divisor, so that all "
                "mini-batches weigh the same"
            )
        episodes = training.questions_per_step * training.samples_per_question
        if algorithm.kl_target and algorithm.kl_horizon <= 0.2 * episodes:
            raise ValueError(
                f"algorithm.kl_horizon is {algorithm.kl_horizon}, but with {episodes} episodes in a step the "
                f"coefficient could fall to 0 or below at once; set it to more than {0.2 * episodes:g}"
            )
        written, reward = self.policy_tokens, self.reward
        if reward.length_penalty and reward.length_start >= written:
            raise ValueError(
                f"reward.length_start is {reward.length_start}, but an episode writes at most {written} tokens "
                "((agent.max_turns + 1) * agent.max_tokens_per_turn); set it below that"
            )
        if self.model.sampler == "vllm" and training.deterministic:
            raise ValueError(
                'training.deterministic is true, but model.sampler is "vllm", which promises no equal bits; set '
                'model.sampler = "local" or training.deterministic = false'
            )
        if self.search.type == "none" and self.agent.max_turns:
            raise ValueError(
                f'search.type is "none", but agent.max_turns allows {self.agent.max_turns} searches; '
                "set agent.max_turns = 0"
            )
        if self.simulates and self.agent.max_turns == 0:
            raise ValueError(
                'agent.max_turns is 0, so nothing would ever be searched; set it to 1 or more, or search.type = "none"'
            )
        return self

    def _keeps_one_process(self) -> Iterator[str]:
        """Why episodes cannot be played in several processes."""
        if self.training.ahead:
            yield "training.ahead samples in the process that learns"
        if self.lora.rank:
            yield "adapters (lora.rank) are not shared by processes"
        if self.model.sampler == "vllm":
            yield "vLLM has processes of its own"
        search = self.search
        trained_with = search.mixed.real if search.type == "mixed" else search.type
        if remote := {trained_with, self.evaluation.engine} & set(REMOTE):
            yield f"the limits and counts of {min(remote)} are those of one process"
