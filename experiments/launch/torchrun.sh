#!/usr/bin/env bash
# A run under torchrun, on one machine or on several: start the same command on each.
#
#   RANKS=8 experiments/launch/torchrun.sh --config experiments/configs/pretrain/llama3_1b.yaml
#   NODES=2 RANKS=8 RENDEZVOUS=first-machine:29500 experiments/launch/torchrun.sh --config ...
#
# When a worker dies, torchrun ends the others and starts all of them again, RESTARTS times at most; each start goes on
# from the newest whole checkpoint, bit-identically.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
ranks="${RANKS:-2}" nodes="${NODES:-1}"
# Workers started again would otherwise find the addresses of the dead ones in the store that they share with torchrun,
# and wait for them (measured with gloo on torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$python" -m torch.distributed.run \
    --nnodes "$nodes" --nproc-per-node "$ranks" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-endpoint "${RENDEZVOUS:-localhost:0}" \
    "${SCRIPT:-experiments/pretrain.py}" "$@" \
    --ckpt_path last_or_begin --trainer.devices "$ranks" --trainer.num_nodes "$nodes"
