"""Which classes of SGLang have no tiny model here, and why."""

from __future__ import annotations

import re

LEFT_OUT: dict[str, str] = {
    "NextN|MTP|Eagle|Draft|DSpark|DFlash|Assistant": "drafts for speculative decoding, which LeanKV refuses",
    "BlockDiffusion|LLaDA|SDAR": "diffusion language models, which LeanKV refuses",
    "Reward|Classification|Embedding|Bidirectional|Contriever|CLIP|MistralModel|Qwen3Model": "they generate nothing",
    "ConditionalGeneration|VL|Llava|MiniCPM[OV]|OCR|MultiModal|Omni|ASR|POINTS|Vision|MiDasheng|Phi4MM|Pixtral": (
        "models of pictures and sound, whose text models are here where SGLang has them"
    ),
    "^(Transformers|TorchNative|MindSpore|Quant)": "SGLang's wrappers of what other implementations serve",
    "DeepseekV32|DeepseekV4|GlmMoeDsa|MiniMaxM3|KimiLinear|KimiK3Linear|Longcat": (
        "sparse, latent or linear attention beside that of models that are here"
    ),
    "^(Bailing|Beam|ChatGLM|DeciLM|Deepseek|Dots3|ExaoneMoE|GigaChat|Grok|HYV4|IQuest|JetNemotron|K2|MiMoV2For)"
    "|^(MiniCPMS|MistralLarge|MuseGlimmer|Nanbeige|NemotronHP|Orion|Phi3Small|Sarvam|Solar|Spark|Step3p5|TeleFLM)"
    "|^(Xllm|XverseMoe)": "transformers has no configuration by that name: their code comes with their weights",
}
"""From patterns of names to reasons; the first that is found holds."""


def why_left_out(architecture: str) -> str | None:
    """Why a class of SGLang is not here, or None where nothing is said of it."""
    return next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, architecture)), None)
