#!/bin/bash
# The same command on every host of a TPU slice, whose names and places JAX finds there:
#   TPU=my-slice ZONE=us-west4-a WORKDIR=/mnt/shared/run examples/tpu_slice.sh
# The package is installed on the hosts as googlenet-jax[tpu,gcs], and WORKDIR is gs://BUCKET/FOLDER, or on a file system that all of them share.
gcloud compute tpus tpu-vm ssh "${TPU:?}" --zone="${ZONE:?}" --worker=all \
    --command="googlenet-jax train --config=imagenet_googlenet_bn --workdir=${WORKDIR:?}"
