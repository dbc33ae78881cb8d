"""Names of the linear maps in a transformer layer, by model family: attention in and out, feed-forward in and out."""

import re
from dataclasses import dataclass

from ptft_recipes.errors import InputError


@dataclass(frozen=True)
class SubLayers:
    """Where a family keeps the projections of one layer; names are relative to the layer.

    Args:
        layer: Regular expression of a layer's name, without what comes before it.
        query: The projection to queries; the same name as `key` and `value` where the three are one matrix.
        key: The projection to keys.
        value: The projection to values.
        attention_output: The projection of the attended values back to the hidden size.
        feed_forward_input: The projections out of the hidden size; two where the feed-forward is gated.
        feed_forward_output: The projection back to the hidden size.
    """

    layer: str
    query: str
    key: str
    value: str
    attention_output: str
    feed_forward_input: tuple[str, ...]
    feed_forward_output: str

    def pattern(self, *names: str) -> str:
        r"""Return the regular expression that the full names of these projections, and no others, match.

        PEFT matches a string given as `target_modules` against the whole name of a module, so that `output.dense` of
        a BERT layer is neither `attention.output.dense` nor a dense layer of a head.

        Args:
            names: As they stand in the other fields.

        >>> names = sub_layers("bert")
        >>> names.pattern(names.query, names.value)
        '(.*\\.)?encoder\\.layer\\.\\d+\\.(attention\\.self\\.query|attention\\.self\\.value)'
        """
        return rf"(.*\.)?{self.layer}\.({'|'.join(re.escape(name) for name in dict.fromkeys(names))})"

    def projections(self) -> tuple[str, ...]:
        """Return the names of all projections of a layer, each once."""
        attention = (self.query, self.key, self.value, self.attention_output)
        return tuple(dict.fromkeys((*attention, *self.feed_forward_input, self.feed_forward_output)))


_BERT = SubLayers(
    layer=r"encoder\.layer\.\d+",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    feed_forward_input=("intermediate.dense",),
    feed_forward_output="output.dense",
)
_LLAMA = SubLayers(
    layer=r"layers\.\d+",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    feed_forward_input=("mlp.gate_proj", "mlp.up_proj"),
    feed_forward_output="mlp.down_proj",
)
# Encoder-decoders: the self-attention and the feed-forward of both stacks; attention to the encoder is not named.
_BART = SubLayers(
    layer=r"(encoder|decoder)\.layers\.\d+",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.out_proj",
    feed_forward_input=("fc1",),
    feed_forward_output="fc2",
)
_T5 = SubLayers(
    layer=r"(encoder|decoder)\.block\.\d+\.layer\.\d+",
    query="SelfAttention.q",
    key="SelfAttention.k",
    value="SelfAttention.v",
    attention_output="SelfAttention.o",
    feed_forward_input=("DenseReluDense.wi",),
    feed_forward_output="DenseReluDense.wo",
)
ENCODER_DECODERS = {**dict.fromkeys(("bart", "m2m_100", "marian", "mbart", "pegasus"), _BART), "t5": _T5}
SUB_LAYERS = {
    **dict.fromkeys(("bert", "camembert", "electra", "ernie", "esm", "megatron-bert", "rembert"), _BERT),
    **dict.fromkeys(("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"), _BERT),
    "albert": SubLayers(  # all layers of a group are one module, applied again and again
        layer=r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_output="attention.dense",
        feed_forward_input=("ffn",),
        feed_forward_output="ffn_output",
    ),
    "deberta-v2": SubLayers(
        layer=r"encoder\.layer\.\d+",
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        attention_output="attention.output.dense",
        feed_forward_input=("intermediate.dense",),
        feed_forward_output="output.dense",
    ),
    "distilbert": SubLayers(
        layer=r"transformer\.layer\.\d+",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        feed_forward_input=("ffn.lin1",),
        feed_forward_output="ffn.lin2",
    ),
    "modernbert": SubLayers(  # Wi is both halves of a gated feed-forward
        layer=r"layers\.\d+",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        attention_output="attn.Wo",
        feed_forward_input=("mlp.Wi",),
        feed_forward_output="mlp.Wo",
    ),
    "mpnet": SubLayers(
        layer=r"encoder\.layer\.\d+",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        feed_forward_input=("intermediate.dense",),
        feed_forward_output="output.dense",
    ),
    "gpt2": SubLayers(
        layer=r"h\.\d+",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        attention_output="attn.c_proj",
        feed_forward_input=("mlp.c_fc",),
        feed_forward_output="mlp.c_proj",
    ),
    "opt": SubLayers(
        layer=r"layers\.\d+",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_output="self_attn.out_proj",
        feed_forward_input=("fc1",),
        feed_forward_output="fc2",
    ),
    **dict.fromkeys(("eurobert", "gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    **ENCODER_DECODERS,
}


def sub_layers(model_type: str) -> SubLayers:
    """Return the names of the projections in the layers of a model family.

    Args:
        model_type: As in the model's config, e.g. `bert`.

    Raises:
        InputError: The family is not in the table.
    """
    if model_type not in SUB_LAYERS:
        raise InputError(
            f"{model_type}: no table of this family's projections ({', '.join(sorted(SUB_LAYERS))}); "
            "name them by hand, e.g. --tuning_kwargs 'target_modules=[self_attn.out_proj, fc2]'"
        )
    return SUB_LAYERS[model_type]
