"""The fitted numbers of NCCL inside one domain, once more: a changed coefficient must be changed in two places."""

BASE, HOP = 4.792, 0.756  # us
A2A_BASE, A2A_HOP = 1.379, 0.2274
ETA, ETA_SMALL, ROOT, SWITCH = 0.8669, 0.4969, 1.285, 1.206
AMPERE = 1.58
