"""Bridge files, apart from training: imported, exported, described, and asked for the conditioning of prompts."""
