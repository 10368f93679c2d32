"""Does a store hold what an encoder would compute? The first difference in words, before anything is trained."""

from collections.abc import Sequence
from pathlib import Path

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.output import Tap
from vlm_vision.tokens.about import encoder_difference, read_about, weights_fingerprint
from vlm_vision.tokens.store import TokenStore
from vlm_vision.tokens.wanted import Part


def matching_store(
    folder: str | Path, encoder: Encoder | FusedEncoder, parts: Sequence[Part] = ("patch_tokens",)
) -> TokenStore:
    """The store, if it was made by an encoder like this one. Its weights are compared by `check_weights`, when they are loaded.

    Args:
        encoder: architecture, preprocessing and tap; it needs no weights.
        parts: what the store must hold.

    Raises:
        ValueError: no store; one that is half written; tokens that a projector or pooling changed; another architecture,
            preprocessing or tap; a part that it lacks.
    """
    about = read_about(Path(folder))
    if not about["finished"]:
        raise ValueError(f"{folder} is half written: run the command that makes it again, then train")
    if about["projector"] is not None:
        raise ValueError(
            f"{folder} holds the output of the projector {about['projector']['name']}: extract the tokens without --projector"
        )
    if (pool := about["settings"]["pool"]) != 1:
        raise ValueError(
            f"pool is {pool} in {folder} and 1 in the encoder of this run: extract the tokens without --pool"
        )
    if found := encoder_difference(about, encoder.to_dict()):
        raise ValueError(
            f"{folder} was made by another encoder: {found}; choose that encoder and image size, or extract the tokens again"
        )
    store = TokenStore(folder)
    stored_layers(store, encoder)
    if lacking := [part for part in parts if part not in about["settings"]["parts"]]:
        raise ValueError(
            f"{folder} has no {lacking[0]}, it has {', '.join(about['settings']['parts'])}: extract the tokens with --parts {' '.join(parts)}"
        )
    return store


def check_weights(store: TokenStore, encoder: Encoder | FusedEncoder, source: str) -> None:
    """Raise ValueError if the store's tokens are not of these weights.

    Args:
        source: name of the encoder in the error.
    """
    there, here = store.about["weights"], weights_fingerprint(encoder)
    if there != here:
        raise ValueError(
            f"the encoder's weights (fingerprint) are {there} in {store.folder} and {here} in {source}: put the encoder that the "
            "store was made with there, or extract the tokens again"
        )


def stored_layers(store: TokenStore, encoder: Encoder | FusedEncoder, tap: Tap | None = None) -> tuple[int, ...]:
    """The layers of a store, as they were asked for, that a tap reads, in the order of its channels.

    Args:
        tap: of every tower; default the encoder's own.

    Raises:
        ValueError: the store has other layers, or the other choice of the final norm.
    """
    settings, towers = store.about["settings"], towers_of(encoder)
    taps = [tap or tower.tap for tower in towers]
    if wrong := [one for one in taps if one.norm != settings["norm"]]:
        there, here = ("with" if norm else "without" for norm in (settings["norm"], wrong[0].norm))
        raise ValueError(
            f"{store.folder} holds tokens {there} the final norm and this run reads them {here} it (tap norm): extract the "
            f"tokens with {'--norm' if wrong[0].norm else '--no-norm'}, or change the tap"
        )
    depths = [tower.config.depth for tower in towers]
    blocks = [one.blocks(depth) for one, depth in zip(taps, depths, strict=True)]
    found = []
    for each in zip(*blocks, strict=True):
        same = [
            layer
            for layer in store.layers
            if all(layer % depth == block for depth, block in zip(depths, each, strict=True))
        ]
        if not same:
            asked = ", ".join(str(layer) for one in dict.fromkeys(taps) for layer in (one.layer, *one.more))
            raise ValueError(
                f"{store.folder} holds the layers {', '.join(map(str, store.layers))} and this run reads {asked} (tap layer): "
                f"extract the tokens with --layer {asked.replace(',', '')}, or change the tap"
            )
        found.append(same[0])
    return tuple(found)


def towers_of(encoder: Encoder | FusedEncoder) -> list[Encoder]:
    """The towers of an encoder, in channel order."""
    return [module for module in encoder.modules() if isinstance(module, Encoder)]
