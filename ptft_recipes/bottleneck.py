"""Bottleneck adapters as a method of PEFT: small networks inside the layers of a frozen transformer.

Importing this module registers the method, under the name `bottleneck`; a saved adapter then loads with plain
`PeftModel.from_pretrained`.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, register_peft_method
from peft.utils.other import _get_submodules
from torch import nn
from transformers.activations import ACT2FN

from ptft_recipes.architectures import sub_layers
from ptft_recipes.errors import nearest

Placement = Literal["houlsby", "pfeiffer", "parallel"]
PEFT_TYPE = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    r"""Configuration of bottleneck adapters.

    An adapter projects the hidden size d down to m = d / reduction_factor, applies a non-linearity, and projects back
    up: 2dm + d + m weights. The up-projection starts at zero, as in the code of He et al. (2022): the model at first
    computes exactly what it computed without adapters. Houlsby et al. (2019) draw both projections from a normal
    distribution of standard deviation 0.01, cut at two deviations, which starts near that function but not on it.

    Args:
        placement: `houlsby`: after the attention's and after the feed-forward's output projection, before the residual
            connection. `pfeiffer`: after the feed-forward's only. `parallel`: beside the feed-forward, reading its
            input and adding to its output. The serial adapters stand before the layer's hidden dropout, where
            Houlsby et al. have them behind it; Pfeiffer et al. also move the layer norm, which is left in place here.
        reduction_factor: Hidden size divided by bottleneck size.
        non_linearity: A name of transformers' `ACT2FN`.
        dropout: Probability of dropping an activation of the bottleneck in training.
        scaling: Factor of what the adapter adds; None for 4 in parallel (He et al., 2022) and 1 elsewhere.
        train_layer_norms: Also train, and save with the adapter, every norm of the body, as Houlsby et al. do. Off by
            default: a copy of the norms belongs to one adapter, so that two such adapters cannot be stacked.
        target_modules: Output projections that get an adapter: names, or a regular expression over full names; None
            for those of the model family.
        input_modules: With `parallel`, the input projections of the same feed-forwards; None for those of the family.
        exclude_modules: Output projections that get none, e.g. `.*layer\.[0-4]\..*` to leave out lower layers.
        modules_to_save: Other modules to train and save whole, such as a head.

    Raises:
        ValueError: A value outside its range.

    Source: Houlsby et al. (2019, Parameter-Efficient Transfer Learning for NLP), section 2.1; Pfeiffer et al. (2021,
    AdapterFusion); He et al. (2022, Towards a Unified View of Parameter-Efficient Transfer Learning), section 3.
    """

    placement: Placement = "houlsby"
    reduction_factor: int = 16
    non_linearity: str = "relu"
    dropout: float = 0.0
    scaling: float | None = None
    train_layer_norms: bool = False
    target_modules: list[str] | str | None = None
    input_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self):
        """Check the values and fill in the scaling of the placement."""
        super().__post_init__()
        self.peft_type = PeftType[PEFT_TYPE]
        placements = get_args(Placement)
        if self.placement not in placements:
            hint = nearest(str(self.placement), placements)
            raise ValueError(f"placement {self.placement!r}: must be one of {', '.join(placements)}{hint}")
        if type(self.reduction_factor) is not int or self.reduction_factor < 1:
            raise ValueError(f"reduction_factor {self.reduction_factor!r}: must be a whole number of at least 1")
        if self.non_linearity not in ACT2FN:
            hint = nearest(str(self.non_linearity), ACT2FN)
            raise ValueError(
                f"non_linearity {self.non_linearity!r}: no activation of transformers has this name{hint}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: must be at least 0 and below 1")
        if self.scaling is None:
            self.scaling = 4.0 if self.placement == "parallel" else 1.0
        if not 0 < self.scaling < math.inf:
            raise ValueError(f"scaling {self.scaling}: must be above 0")
        if self.placement != "parallel" and self.input_modules is not None:
            raise ValueError(f"input_modules: {self.placement} adapters read no feed-forward input")
        if self.placement == "parallel" and (self.target_modules is None) != (self.input_modules is None):
            raise ValueError("parallel adapters: give both target_modules and input_modules, or neither")

    @classmethod
    def check_kwargs(cls, **kwargs) -> dict:
        """Refuse the adapter of a fork of PEFT that used the same name: PEFT would drop its fields and its weights.

        Raises:
            ValueError: The saved configuration has a field of that fork.
        """
        if "bottleneck_size" in kwargs:
            raise ValueError(
                "this adapter was saved by a fork of PEFT (it has a bottleneck_size); it cannot be loaded"
            )
        return super().check_kwargs(**kwargs)


class FeedForwardInput(nn.Module):
    """Hold what enters a feed-forward until its output projection has run.

    A module, and registered in both that share it, so that copies (`deepcopy`, replicas of `DataParallel`) share one
    of their own.
    """

    def __init__(self):
        """Hold nothing yet."""
        super().__init__()
        self.hidden_states: torch.Tensor | None = None

    def take(self) -> torch.Tensor | None:
        """Return what is held `[..., hidden]`, and let go of it: else it would outlive the step."""
        hidden_states, self.hidden_states = self.hidden_states, None
        return hidden_states


class InputProjection(nn.Module):
    """Run a feed-forward's input projection, keeping its input for the parallel adapter.

    Args:
        base_layer: The projection.
        feed_forward_input: Where to keep it.
    """

    def __init__(self, base_layer: nn.Module, feed_forward_input: FeedForwardInput):
        """Wrap the projection."""
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_input = feed_forward_input

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project `[..., hidden]`."""
        self.bottleneck_input.hidden_states = hidden_states
        return self.base_layer(hidden_states)

    def get_base_layer(self) -> nn.Module:
        """Return the projection, as PEFT asks for it in `unload`."""
        return self.base_layer


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """An output projection with its adapters, each a serial or a parallel one.

    Args:
        base_layer: The projection back to the hidden size.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_activation")
    other_param_names = ("bottleneck_dropout", "scaling", "parallel")

    def __init__(self, base_layer: nn.Module):
        """Wrap the projection; it has no adapter yet."""
        super().__init__()
        self.base_layer = base_layer
        self.hidden_size = getattr(base_layer, "out_features", getattr(base_layer, "nf", None))  # nf: GPT-2's Conv1D
        if self.hidden_size is None:
            raise ValueError(f"a bottleneck adapter needs a linear projection, not a {type(base_layer).__name__}")
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_activation = nn.ModuleDict()  # some activations have weights, such as prelu
        self.bottleneck_dropout = nn.ModuleDict()
        self.bottleneck_input: FeedForwardInput | None = None
        self.scaling: dict[str, float] = {}
        self.parallel: dict[str, bool] = {}
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter that changes nothing yet.

        Raises:
            ValueError: The reduction factor leaves no bottleneck.
        """
        size = self.hidden_size // config.reduction_factor
        if size < 1:
            raise ValueError(f"reduction_factor {config.reduction_factor}: above the hidden size {self.hidden_size}")
        down, up = nn.Linear(self.hidden_size, size), nn.Linear(size, self.hidden_size)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_activation[adapter_name] = ACT2FN[config.non_linearity]
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.scaling[adapter_name] = config.scaling
        self.parallel[adapter_name] = config.placement == "parallel"
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project `[..., intermediate]` to `[..., hidden]` and apply the active adapters in their order."""
        feed_forward_input = self.bottleneck_input.take() if self.bottleneck_input is not None else None
        result = self.base_layer(hidden_states)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                source = feed_forward_input if self.parallel[name] else result
                result = result + (self.scaling[name] * self._bottleneck(name, source)).to(result.dtype)
        return result

    def _bottleneck(self, name: str, hidden_states: torch.Tensor) -> torch.Tensor:
        down = self.bottleneck_down[name]
        hidden_states = self._cast_input_dtype(hidden_states, down.weight.dtype)
        activations = self.bottleneck_activation[name](down(hidden_states))
        return self.bottleneck_up[name](self.bottleneck_dropout[name](activations))


class BottleneckModel(BaseTuner):
    """A model whose layers carry bottleneck adapters; made by `get_peft_model`.

    Several adapters on one base are switched by `set_adapter(name)`. A list of active adapters, set by
    `model.base_model.set_adapter([first, second])`, is a stack: each serial adapter reads what the one before it left.

    PEFT's `unload` removes the adapters but leaves the active copies of `modules_to_save` in place.

    Source: Pfeiffer et al. (2020, MAD-X) for stacks, there of a language's and a task's adapter.
    """

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 -- PEFT's name; the table is in architectures.py

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict) -> BottleneckConfig:
        if peft_config.target_modules is None:
            names = sub_layers(model_config["model_type"])
            attention = (names.attention_output,) if peft_config.placement == "houlsby" else ()
            peft_config.target_modules = names.pattern(*attention, names.feed_forward_output)
            if peft_config.placement == "parallel":
                peft_config.input_modules = names.pattern(names.feed_forward_input[0])
        return peft_config

    def _prepare_model(self, peft_config: BottleneckConfig, model: nn.Module) -> None:
        if peft_config.train_layer_norms:
            saved = peft_config.modules_to_save or []
            norms = [name for name in _norms_of_the_body(model) if name not in saved]
            peft_config.modules_to_save = [*saved, *norms]

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target)
        layer.update_layer(adapter_name, peft_config)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        if peft_config.placement == "parallel" and layer.bottleneck_input is None:
            layer.bottleneck_input = FeedForwardInput()
            self._keep_input(peft_config.input_modules, current_key, layer.bottleneck_input)

    def _keep_input(self, input_modules: list[str] | str, output_name: str, kept: FeedForwardInput) -> None:
        """Wrap the input projection that belongs to an output projection: the last one before it."""
        names = [name for name, _ in self.model.named_modules()]
        inputs = [name for name in names[: names.index(output_name)] if _matches(input_modules, name)]
        if inputs:
            parent, target, target_name = _get_submodules(self.model, inputs[-1])
        if not inputs or isinstance(target, InputProjection):
            raise ValueError(f"input_modules {input_modules}: none of them comes before {output_name} in its layer")
        self._replace_module(parent, target_name, InputProjection(target, kept), target)

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "a bottleneck adapter cannot be merged: its non-linearity does not fold into a weight matrix; "
            "keep the adapter's folder beside the base model, or take the base back with unload()"
        )


def _matches(names: list[str] | str, name: str) -> bool:
    """Match a module's name as PEFT does: a regular expression over all of it, or the ends of it."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(f".{name}".endswith(f".{end}") for end in names)


def _norms_of_the_body(model: nn.Module) -> list[str]:
    """Return the names of all norms outside heads, also of those that another adapter has wrapped."""
    prefix = getattr(model, "base_model_prefix", "")
    body = f"{prefix}." if prefix and hasattr(model, prefix) else ""
    norms = []
    for name, module in model.named_modules():
        module = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
        inside_wrapper = name.endswith(".original_module") or ".modules_to_save." in name
        if name.startswith(body) and type(module).__name__.endswith("Norm") and not inside_wrapper:
            norms.append(name)
    return norms


def _register() -> None:
    """Make the method known to PEFT, also when this module is imported anew."""
    if PEFT_TYPE not in PeftType.__members__:
        # PEFT takes a method's type from an Enum, and neither PEFT nor Enum has a public way to add a member.
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = member._value_ = PEFT_TYPE
        member.__objclass__ = PeftType
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = PeftType._value2member_map_[PEFT_TYPE] = member
        type.__setattr__(PeftType, PEFT_TYPE, member)
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PEFT_TYPE)
    if known is not None and known.__module__ == __name__:  # else PEFT itself has such a method, and refuses ours
        for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING):
            del mapping[PEFT_TYPE]
        PEFT_TYPE_TO_PREFIX_MAPPING.pop(PEFT_TYPE)
    register_peft_method(
        name=PEFT_TYPE.lower(), config_cls=BottleneckConfig, model_cls=BottleneckModel, prefix=BottleneckModel.prefix
    )


_register()
