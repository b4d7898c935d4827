"""timm: the smallest model of every family (`timm.list_modules()`), on the smallest images that it takes."""

import functools
from collections.abc import Callable, Iterator

import timm
import torch

from zoo import Inputs, Specimen

# family: (model, side of its images, whether it must be told)
FAMILIES: dict[str, tuple[str, int, bool]] = {
    "beit": ("beit_base_patch16_224", 64, True),
    "byoanet": ("halonet_h1", 256, True),
    "byobnet": ("test_byobnet", 64, True),
    "cait": ("cait_xxs24_224", 64, True),
    "coat": ("coat_tiny", 64, True),
    "convit": ("convit_tiny", 64, True),
    "convmixer": ("convmixer_768_32", 64, False),
    "convnext": ("test_convnext", 64, False),
    "cpubone": ("cpubone_nano", 64, False),
    "crossvit": ("crossvit_tiny_240", 64, False),
    "csatv2": ("csatv2", 64, False),
    "cspnet": ("cs3darknet_focus_s", 64, False),
    "cspnext": ("cspnext_tiny", 64, False),
    "davit": ("davit_tiny", 64, False),
    "deepseek_vit": ("deepseek_vit_412m", 56, True),
    "deit": ("deit_tiny_patch16_224", 64, True),
    "densenet": ("densenet121", 64, False),
    "dla": ("dla46x_c", 64, False),
    "dpn": ("dpn48b", 64, False),
    "edgenext": ("edgenext_xx_small", 64, False),
    "efficientformer": ("efficientformer_l1", 224, True),
    "efficientformer_v2": ("efficientformerv2_s0", 64, True),
    "efficientnet": ("test_efficientnet", 64, False),
    "efficientvim": ("efficientvim_m1", 64, False),
    "efficientvit_mit": ("efficientvit_b0", 64, False),
    "efficientvit_msra": ("efficientvit_m0", 64, True),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 64, True),
    "fasternet": ("fasternet_t0", 64, False),
    "fastvit": ("fastvit_t8", 64, False),
    "focalnet": ("focalnet_tiny_srf", 64, False),
    "gcvit": ("gcvit_xxtiny", 64, True),
    "gemma4_vit": ("gemma4_vit_167m", 64, True),
    "ghostnet": ("ghostnet_050", 64, False),
    "hardcorenas": ("hardcorenas_b", 64, False),
    "hgnet": ("hgnetv2_b0", 64, False),
    "hiera": ("hiera_tiny_224", 64, True),
    "hieradet_sam2": ("sam2_hiera_tiny", 64, False),
    "hrnet": ("hrnet_w18_small", 64, False),
    "iformer": ("iformer_t", 64, False),
    "inception_next": ("inception_next_atto", 64, False),
    "inception_resnet_v2": ("inception_resnet_v2", 96, False),
    "inception_v3": ("inception_v3", 96, False),
    "inception_v4": ("inception_v4", 96, False),
    "lcnetv2": ("lcnetv2_small", 64, False),
    "levit": ("levit_128s", 64, True),
    "lowformer": ("lowformer_b0", 64, False),
    "mambaout": ("test_mambaout", 64, False),
    "maxxvit": ("test_coatnet", 64, True),
    "metaformer": ("poolformerv2_s12", 64, False),
    "mlp_mixer": ("gmlp_ti16_224", 64, True),
    "mobilenetv3": ("mobilenetv3_small_050", 64, False),
    "mobilenetv5": ("mobilenetv5_base", 64, False),
    "mobilevit": ("mobilevit_xxs", 64, True),
    "mvitv2": ("mvitv2_tiny", 64, True),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", 64, True),
    "nasnet": ("nasnetalarge", 64, False),
    "nest": ("nest_tiny", 64, True),
    "nextvit": ("nextvit_small", 64, False),
    "nfnet": ("test_nfnet", 64, False),
    "pit": ("pit_ti_224", 64, True),
    "pnasnet": ("pnasnet5large", 64, False),
    "pvt_v2": ("pvt_v2_b0", 64, False),
    "qwen3_vit": ("qwen3_vit_88m", 64, True),
    "rdnet": ("rdnet_tiny", 64, False),
    "regnet": ("regnetx_002", 64, False),
    "repghost": ("repghostnet_050", 64, False),
    "repvit": ("repvit_m1", 64, True),
    "res2net": ("res2next50", 64, False),
    "resnest": ("resnest14d", 64, False),
    "resnet": ("test_resnet", 64, False),
    "resnetv2": ("resnetv2_18", 64, False),
    "rexnet": ("rexnet_100", 64, False),
    "selecsls": ("selecsls42", 64, False),
    "senet": ("legacy_seresnet18", 64, False),
    "sequencer": ("sequencer2d_s", 64, True),
    "shvit": ("shvit_s1", 64, False),
    "sknet": ("skresnet18", 64, False),
    "starnet": ("starnet_s050", 64, False),
    "swiftformer": ("swiftformer_xs", 64, True),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 64, True),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 64, True),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 64, True),
    "tiny_vit": ("tiny_vit_5m_224", 64, False),
    "tnt": ("tnt_s_legacy_patch16_224", 64, True),
    "tresnet": ("tresnet_m", 64, False),
    "twins": ("twins_svt_small", 64, True),
    "vgg": ("vgg11", 64, False),
    "visformer": ("visformer_tiny", 64, True),
    "vision_transformer": ("test_vit", 64, True),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64, True),
    "vision_transformer_relpos": ("test_vit_relpos", 64, True),
    "vision_transformer_sam": ("samvit_base_patch16_224", 64, True),
    "vitamin": ("vitamin_small_224", 64, True),
    "volo": ("volo_d1_224", 64, True),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, False),
    "xception": ("legacy_xception", 64, False),
    "xception_aligned": ("xception41p", 64, False),
    "xcit": ("xcit_nano_12_p8_224", 64, True),
}

# Families whose smallest model is large: three blocks of it.
_SHORTENED = {"beit", "deepseek_vit", "gemma4_vit", "naflexvit", "qwen3_vit", "vision_transformer_sam"}


def specimens() -> Iterator[Specimen]:
    """List one model of every family. A name says both: `timm/swin_transformer.swin_tiny_patch4_window7_224`."""
    for family, (name, side, is_told) in FAMILIES.items():
        options = ({"img_size": side} if is_told else {}) | ({"depth": 3} if family in _SHORTENED else {})
        make = functools.partial(timm.create_model, name, pretrained=False, num_classes=7, **options)
        yield Specimen(f"timm/{family}.{name}", make, _images(side))


def _images(side: int) -> Callable[[int], Inputs]:
    return lambda batch: ((torch.randn(batch, 3, side, side),), {})
