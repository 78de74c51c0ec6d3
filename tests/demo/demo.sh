#!/bin/sh
# The whole pipeline on generated videos: prints each command as a user would type it, and runs it.
set -eu
PY=${PY:-python}

step() {
    printf '\n\033[1m# %s\033[0m\n' "$1"
    shift
    printf '$ python'
    for word in "$@"; do
        case $word in *[\ \;]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$PY" "$@"
}

started=$(date +%s)
step "Check what is installed" -m extract check --fetch || true
encoder=mobilenet_v3_large
"$PY" -c 'from seqmodel.encoders.model_files import encoder_weights as w; w("mobilenet_v3_large", "imagenet")' 2>/dev/null ||
    encoder=efficientnet_lite0
if [ "$encoder" != mobilenet_v3_large ]; then
    echo "MobileNetV3-Large's ImageNet weights cannot be downloaded here: the demo uses $encoder, whose weights are a pip package."
else
    echo "The demo uses MobileNetV3-Large with its ImageNet weights."
fi
step "Write labelled demo videos" -m extract demo --out demo
step "Compute one embedding for each sampled face, once" \
    -m extract --data demo/labels.csv --out demo/demo.zarr --encoder "$encoder" --crops jpeg
step "Search heads on the cached embeddings, then fine-tune encoder and head end to end" \
    -m tune --store demo/demo.zarr --out runs/demo --labels distracted,engaged --finetune
step "Evaluate on the test subjects" -m seqmodel evaluate --run runs/demo --split test --umap
step "Run live on a new video file" \
    -m live --run runs/demo --video demo/unseen.mp4 --headless --log runs/demo/live.csv
printf '\n\033[1m# Results\033[0m (SYNTHETIC DATA: made from one portrait, labels by construction)\n'
"$PY" -m tests.demo.print_metrics runs/demo runs/demo/live.csv demo/unseen.csv
echo "took $(($(date +%s) - started)) s; all files are in demo/ and runs/demo/"
