"""The two models of ELECTRA: a small generator fills gaps, and a discriminator finds what it put there."""

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.electra.modeling_electra import ElectraForPreTraining, ElectraPreTrainedModel
from transformers.utils import ModelOutput

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, from_pretrained, load_model
from ptft_recipes.sparse_head import model_body, only_at

logger = logging.getLogger(__name__)

GENERATOR = "generator"  # the folder inside of the discriminator's


@dataclass
class ReplacedTokenOutput(ModelOutput):
    """What generator and discriminator return for a batch.

    Args:
        logits: `[batch, length]`, of each token to have been replaced.
        generator_logits: `[hidden tokens, vocabulary]`, row by row.
        replaced: `[batch, length]`, 1 where the discriminator reads another token than the original, 0 where it reads
            the original, -100 for special tokens and padding.
    """

    logits: torch.Tensor | None = None
    generator_logits: torch.Tensor | None = None
    replaced: torch.Tensor | None = None


class GeneratorAndDiscriminator(ElectraPreTrainedModel):
    """Both models of ELECTRA as one that can be trained; saved, each is a plain checkpoint of its own.

    Args:
        generator: A masked language model.
        discriminator: Of the same vocabulary.
    """

    def __init__(self, generator: PreTrainedModel, discriminator: ElectraForPreTraining):  # noqa: D107
        super().__init__(discriminator.config)
        self.stock = False  # True computes the generator's head at every position
        self.generator, self.discriminator = generator, discriminator

    def get_input_embeddings(self):
        """Return the discriminator's word embeddings."""
        return self.discriminator.get_input_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        original_ids: torch.Tensor,
        draws: torch.Tensor,
        scored: torch.Tensor,
    ) -> ReplacedTokenOutput:
        """Fill the gaps by sampling, and look for what was filled in; arguments as `ReplacedTokenCollator` makes them.

        Sampling passes no gradient on: the generator learns from its own loss alone.
        """
        hidden = draws >= 0
        with only_at(self.generator, hidden, sparse=not self.stock):
            generator_logits = self.generator(input_ids=input_ids, attention_mask=attention_mask).logits
        corrupted = original_ids.clone()
        corrupted[hidden] = sample_tokens(generator_logits, draws[hidden])
        logits = self.discriminator(input_ids=corrupted, attention_mask=attention_mask).logits
        # A token that the generator got right is an original one.
        replaced = (corrupted != original_ids).long().masked_fill(~scored, -100)
        return ReplacedTokenOutput(logits, generator_logits, replaced)

    def saved_in(self, folder: str | Path) -> list[tuple[PreTrainedModel, type, Path]]:
        """Return each model, the class that loads it, and its place when both are saved in a folder."""
        return [
            (self.discriminator, AutoModelForPreTraining, Path(folder)),
            (self.generator, AutoModelForMaskedLM, Path(folder, GENERATOR)),
        ]

    def save_pretrained(self, save_directory, state_dict=None, **kwargs):
        """Save the discriminator in a folder and the generator in `generator/` inside of it.

        Raises:
            ValueError: The weights were gathered from shards, which nobody has tried.
        """
        if state_dict is not None:
            raise ValueError("sharded training of generator and discriminator is not supported")
        for model, _, folder in self.saved_in(save_directory):
            model.save_pretrained(folder, **kwargs)


@torch.no_grad()
def sample_tokens(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Sample a token from each distribution, as the given draws decide it.

    Args:
        logits: `[tokens, vocabulary]`.
        draws: `[tokens]`, uniform in [0, 1).

    Returns:
        `[tokens]`, the first token at which the cumulated probability exceeds the draw.
    """
    cumulated = logits.float().softmax(-1).cumsum(-1)
    # Rounding leaves a sum beside 1; scaled by it, a draw below 1 never falls behind the last token.
    found = torch.searchsorted(cumulated, (draws[:, None] * cumulated[:, -1:]), right=True)[:, 0]
    return found.clamp(max=logits.shape[-1] - 1)


def load_generator_and_discriminator(
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    generator_name_or_path: str | None = None,
    size: float = 0.25,
) -> GeneratorAndDiscriminator:
    """Load the discriminator, and load or make its generator; embeddings are shared where they can be.

    Word and position embeddings become one of the two where their shapes agree, unless two checkpoints bring different
    values for them.

    Args:
        model_args: The discriminator's; with `from_scratch` both models have new weights.
        tokenizer: The discriminator's.
        generator_name_or_path: A masked language model with the same tokens; a new one of the discriminator's depth
            when None.
        size: Of a new generator: its share of the discriminator's attention heads, hidden and feed-forward width.

    Raises:
        InputError: A discriminator that is not ELECTRA, a generator with other tokens, or a size that is not above 0
            and at most 1; or as `load_model`.

    Source: Clark et al., ELECTRA (2020), section 3.2.
    """
    name = model_args.model_name_or_path
    config = from_pretrained(AutoConfig, model_args)
    if config.model_type != "electra":
        raise InputError(
            f"{name} is of type {config.model_type}; replaced-token detection needs an ELECTRA discriminator, e.g. "
            "google/electra-small-discriminator; recipes/pretrain_mlm.py goes on with other encoders"
        )
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise InputError(
            "--load_in_4bit, --load_in_8bit: replaced-token detection moves all weights, quantised cannot"
        )
    if not 0 < size <= 1:
        raise InputError(f"--generator_size {size}: must be above 0 and at most 1")
    if generator_name_or_path:
        generator_args = replace(model_args, model_name_or_path=generator_name_or_path, model_revision="main")
        if from_pretrained(AutoTokenizer, generator_args).get_vocab() != tokenizer.get_vocab():
            raise InputError(f"--generator_name_or_path {generator_name_or_path}: its tokens are not those of {name}")
        generator, _ = load_model(AutoModelForMaskedLM, generator_args, tokenizer)
        if generator.config.vocab_size > config.vocab_size:
            raise InputError(
                f"--generator_name_or_path {generator_name_or_path}: it predicts {generator.config.vocab_size} tokens "
                f"and {name} reads {config.vocab_size}"
            )
    discriminator, _ = load_model(AutoModelForPreTraining, model_args, tokenizer)
    if not generator_name_or_path:
        smaller = smaller_config(discriminator.config, size)
        implementation = model_args.attn_implementation
        generator = AutoModelForMaskedLM.from_config(smaller, attn_implementation=implementation, dtype="float32")
        logger.info("generator: all weights new, hidden size %d", smaller.hidden_size)
    both_trained = bool(generator_name_or_path) and not model_args.from_scratch
    shared = share_embeddings(generator, discriminator, keep_different=both_trained)
    model = GeneratorAndDiscriminator(generator, discriminator)
    logger.info(
        "generator and discriminator: %s and %s weights; shared: %s",
        f"{generator.num_parameters():,}",
        f"{discriminator.num_parameters():,}",
        ", ".join(shared) or "-",
    )
    return model


def smaller_config(config, size: float):
    """Return the config of a generator: as deep as the discriminator, with a share of its heads and widths."""
    smaller = copy.deepcopy(config)
    smaller.num_attention_heads = max(1, round(config.num_attention_heads * size))
    smaller.hidden_size = smaller.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    smaller.intermediate_size = max(1, round(config.intermediate_size * size))
    smaller.lineage = []  # of the discriminator's weights
    return smaller


def share_embeddings(generator: PreTrainedModel, discriminator: PreTrainedModel, keep_different: bool) -> list[str]:
    """Let the generator read by the discriminator's word and position embeddings, and predict by the former.

    Args:
        generator: Its vocabulary head follows where it is tied.
        discriminator: Stays as it is.
        keep_different: Leave embeddings apart whose values differ.

    Returns:
        Which are shared.
    """
    ours, theirs = (getattr(model_body(model), "embeddings", None) for model in (discriminator, generator))
    shared = []
    for name in ("word_embeddings", "position_embeddings"):
        own, other = (getattr(embeddings, name, None) for embeddings in (ours, theirs))
        fits = own is not None and other is not None and own.weight.shape == other.weight.shape
        if fits and not (keep_different and not torch.equal(own.weight, other.weight)):
            other.weight = own.weight
            shared.append(name)
    generator.tie_weights()
    return shared
