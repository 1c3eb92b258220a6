"""The languages of the embedded model, and the topics it is taught."""

from __future__ import annotations

SOURCE = "eng"

# ISO 639-3 code -> the name of the language in SIB-200.
LANGUAGES = {
    "eng": "eng_Latn", "deu": "deu_Latn", "nld": "nld_Latn", "swe": "swe_Latn", "fra": "fra_Latn", "spa": "spa_Latn",
    "por": "por_Latn", "ita": "ita_Latn", "rus": "rus_Cyrl", "ces": "ces_Latn", "pol": "pol_Latn", "ell": "ell_Grek",
    "fin": "fin_Latn", "hun": "hun_Latn", "tur": "tur_Latn", "ara": "arb_Arab", "hin": "hin_Deva", "ind": "ind_Latn",
    "vie": "vie_Latn", "zho": "zho_Hans", "swh": "swh_Latn",
}  # fmt: skip

TOPICS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
