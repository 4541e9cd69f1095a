"""LoRA layers of a training on a GPU: what PEFT's layers compute."""

from tests.lora_layers import distance, layers_of, outputs, some


def test_output_and_gradients_are_pefts_but_for_rounding(measured):
    peft, ours = (layer.cuda() for layer in layers_of())
    x, slope = (tensor.cuda() for tensor in some(peft))
    by_peft, by_us = outputs(peft, x, slope), outputs(ours, x, slope)
    for name, value in by_us.items():
        apart = distance(value, by_peft[name])
        measured(f"LoRA layer, bfloat16, against PEFT's: {name}", apart)
        assert value.dtype == by_peft[name].dtype and apart < 0.01, name
