"""What measuring a model and its emulators came to; where it came to nothing, why."""

from pydantic import BaseModel, ConfigDict, Field

from fedcybgd.shared.contract.sizes import counted


class Failure(BaseModel):
    """Why there is no number where one was wanted."""

    model_config = ConfigDict(frozen=True)
    code: str = Field(description="`skipped`: a newer score was wanted before this one began")
    message: str


class Spent(BaseModel):
    """What a run's model had cost when its score was asked for."""

    model_config = ConfigDict(frozen=True)
    bytes_down: int = Field(description="bytes of shards, patches and files sent to agents")
    bytes_up: int = Field(description="bytes of deltas received")
    tokens: int = Field(description="tokens trained on by the visits that count, padding apart")
    seconds: float = Field(description="since the run was first started, pauses included")


class LabelScore(BaseModel):
    """How a classifier fares with one label."""

    label: int = Field(description="its number, from 0")
    name: str | None = Field(None, description="where the run file names labels")
    rows: int = Field(description="held-out rows that have it")
    guessed: int = Field(description="rows that were taken for it")
    right: int = Field(description="rows that have it and were taken for it")
    recall: float | None = Field(description="right of rows; null: no row has it")
    precision: float | None = Field(description="right of guessed; null: no row was taken for it")
    f1: float | None = Field(description="the harmonic mean of the two; null: no row has it")


class Score(BaseModel):
    """Of a model, on held-out rows."""

    loss: float | None = Field(
        description="mean cross entropy in nats, per row (classification, answers in a context) or per token (language modelling)"
    )
    loss_error: float | None = Field(None, description="standard error of the loss, for the choice of the rows (or of the windows of text)")
    bits_per_byte: float | None = Field(
        None, description="of a language model: bits it needs for a byte of the text, whatever the tokenizer"
    )
    accuracy: float | None
    accuracy_error: float | None = Field(None, description="standard error of the accuracy, for the choice of the rows")
    majority: float | None = Field(None, description="the accuracy of always saying the label that most held-out rows have")
    matthews: float | None = Field(None, description="of a classifier: Matthews' correlation, from -1 over 0 (chance) to 1")
    macro_f1: float | None = Field(None, description="of a classifier: the mean over the labels that held-out rows have")
    labels_held_out: int | None = Field(None, description="how many labels held-out rows have")
    labels_never_right: int | None = Field(None, description="of those, how many no row was right of")
    f1: float | None = Field(None, description="of answers in a context: SQuAD's F1 over words, the mean over the rows, 0 to 1")
    f1_error: float | None = Field(None, description="standard error of the F1, for the choice of the rows")
    exact_match: float | None = Field(None, description="of answers in a context: the share of the rows whose answer is said word by word")
    exact_match_error: float | None = Field(None, description="standard error of the exact match, for the choice of the rows")
    rows: int
    seconds: float
    spent: Spent | None = Field(None, description="what the model had cost by then: bytes, tokens, seconds")
    failed: Failure | None = Field(None, description="why there is no loss")

    @property
    def quality(self) -> float | None:
        """What is to be high, 0 to 1: accuracy where there are labels, F1 of answers; None: of text, whose loss says it."""
        return self.f1 if self.accuracy is None else self.accuracy

    @property
    def quality_error(self) -> float | None:
        return self.f1_error if self.accuracy is None else self.accuracy_error

    @property
    def measure(self) -> str | None:
        """What the quality is called."""
        return None if self.quality is None else "F1" if self.accuracy is None else "accuracy"

    @property
    def is_by_majority(self) -> bool:
        """Whether, for all that the held-out rows tell, always saying their commonest label would be as good: within one standard error."""
        return None not in (self.accuracy, self.majority) and (self.accuracy or 0) - (self.majority or 0) <= (self.accuracy_error or 0)

    def in_words(self) -> str:
        if self.loss is None:
            return "no score"
        return f"loss {self.loss:.4f}" if self.quality is None else f"{self.measure} {self.quality:.2%}, loss {self.loss:.4f}"


FLAT = 100
"""The highest temperature: of what logits of the usual size say nothing is left"""


class HeadCalibrationScores(BaseModel):
    """What calibrating the head of a classifier comes to, on the held-out rows."""

    temperature: float = Field(description="what logits are divided by; above 1 where the model was too sure of itself")
    kept: bool = Field(description="whether the run ended with it: its loss is lower, and its accuracy not")
    before: Score = Field(description="of the model as it was trained, on the same rows")
    after: Score = Field(description="each half of the rows with what the other half made of it, so that no row tells of itself")

    def in_words(self) -> str:
        found = f"{self.after.in_words()}, before {self.before.in_words()}"
        if self.kept:
            return f"its head is calibrated {self._how()} ({found})"
        return f"calibrated {self._how()} it would not be better on rows that it was not fitted to ({found})"

    def _how(self) -> str:
        if self.temperature >= FLAT:
            return "to say the same of every row, for its logits tell nothing of these rows,"
        return f"with temperature {self.temperature:.3g}"


class Conclusion(BaseModel):
    """With which candidate a run ended."""

    kept: str = Field(description="last, average or best")
    rounds: int = Field(description="the last ones, over which the average is; 0: there was none")
    best_after: int = Field(description="rounds after which it scored best")
    scores: dict[str, Score] = Field(description="by candidate, as far as they are scored")
    without: list[str] = Field(description="the candidates that it did not end with")
    calibration: HeadCalibrationScores | None = Field(
        None, description="of the head of the one it ended with; null: not asked for, or not possible"
    )

    @property
    def is_calibrated(self) -> bool:
        return self.calibration is not None and self.calibration.kept

    @property
    def score(self) -> Score | None:
        """Of the model that the run ended with."""
        return self.calibration.after if self.calibration is not None and self.calibration.kept else self.scores.get(self.kept)

    def in_words(self) -> str:
        """What the run ended with, and instead of what."""
        names = {
            "last": "its last version", "average": f"the average of the versions of its last {counted(self.rounds, 'round')}",
            "best": f"the best version, after {counted(self.best_after, 'round')}",
        }  # fmt: skip
        found = {name: f"{text} ({self.scores[name].in_words()})" if name in self.scores else text for name, text in names.items()}
        instead = f", and not with {' or '.join(found[name] for name in self.without)}" if self.without else ""
        return f"it ended with {found[self.kept]}{instead}{'' if self.calibration is None else f'; {self.calibration.in_words()}'}"


class FidelityNumbers(BaseModel):
    """Of an emulator to the real model, on the calibration rows."""

    plan: str
    """key of the plan that it was made by"""
    cosine: float | None
    """between the visited block's gradient in the emulator and in the real model on one batch, averaged over batches by their predictions;
    0 where the emulator's is zero or not finite"""
    cosine_worst: float | None
    """of the worst batch"""
    loss_real: float | None
    loss_emulator: float | None
    """mean cross entropy in nats, as in an evaluation; None: not finite"""
    rows: int
    seconds: float
    failed: Failure | None = None
    """why there is no cosine"""
