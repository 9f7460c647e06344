"""Models on the Hugging Face hub: whether one can be had from there, asked once.

So a misspelt folder, or a missing network, is told at once and not after minutes of further tries.
"""

from __future__ import annotations

from functools import lru_cache

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError


@lru_cache
def why_not(name: str) -> str | None:
    """Why the model of this name cannot be had; None where it can.

    One that was fetched before and is asked for without a network comes from the cache: the rest of this process is then offline
    to the hub.
    """
    try:
        is_here = isinstance(try_to_load_from_cache(name, "config.json"), str)
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except HFValidationError:
        return "it is no name of a model on the Hugging Face hub"
    except GatedRepoError:
        return (
            f"the Hugging Face hub ({constants.ENDPOINT}) gives that model to those only whom it has let in (HF_TOKEN)"
        )
    except RepositoryNotFoundError:
        return f"the Hugging Face hub ({constants.ENDPOINT}) has no model of that name, or not for you (HF_TOKEN)"
    except HfHubHTTPError:
        return None  # it answers; what it holds is the loader's matter
    except Exception as error:  # of whichever HTTP library the hub's client uses
        if is_here:
            constants.HF_HUB_OFFLINE = True
            return None
        return f"the Hugging Face hub ({constants.ENDPOINT}) cannot be reached ({str(error).partition(chr(10))[0]})"
    return None
