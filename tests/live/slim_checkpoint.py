"""Writes checkpoints of TF-slim's own networks; run as `python slim_checkpoint.py NETWORK PREFIX
CLASSES [ema]`.

A process of its own: TensorFlow 1's graph mode is a switch for the whole process. Prints nothing;
beside PREFIX stands PREFIX.npz with the
variables' values and the network's logits for PREFIX's input.
"""

import sys

import numpy as np


def main(network: str, prefix: str, classes: int, ema: bool) -> None:
    import tensorflow.compat.v1 as tf
    import tf_keras.src.legacy_tf_layers

    # tf_slim 1.1 looks for the layers where TensorFlow had them before Keras 3.
    sys.modules["tf_keras.legacy_tf_layers"] = tf_keras.src.legacy_tf_layers
    tf.disable_eager_execution()
    import tf_slim as slim
    from tf_slim.nets import inception

    rng = np.random.default_rng(0)
    size = {"inception_v1": 224, "inception_v2": 224, "inception_v3": 299}[network]
    images = rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    placeholder = tf.placeholder(tf.float32, images.shape)
    with slim.arg_scope(inception.inception_v3_arg_scope()):
        logits, ends = getattr(inception, network)(
            placeholder, num_classes=classes, is_training=False
        )
    variables = tf.global_variables()
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for variable in variables:
            low, high = (
                (0.5, 1.5)
                if "variance" in variable.name or "gamma" in variable.name
                else (-0.05, 0.05)
            )
            variable.load(
                rng.uniform(low, high, variable.shape.as_list()).astype(np.float32), session
            )
        shadows = {}
        if ema:
            averages = tf.train.ExponentialMovingAverage(0.5)
            update = averages.apply(slim.get_model_variables())
            names = set(tf.global_variables()) - set(variables)
            session.run(tf.variables_initializer(names))
            for variable in variables:
                variable.load(variable.eval(session) + np.float32(0.25), session)
            session.run(update)
            shadows = {
                v.op.name: averages.average(v).eval(session) for v in slim.get_model_variables()
            }
        values = {variable.op.name: variable.eval(session) for variable in variables}
        outputs = session.run(
            {"logits": logits, "aux": ends.get("AuxLogits", logits)}, {placeholder: images}
        )
        tf.train.Saver().save(session, prefix, write_meta_graph=False)
    np.savez(
        prefix + ".npz",
        images=images,
        **outputs,
        **{f"v:{k}": v for k, v in values.items()},
        **{f"e:{k}": v for k, v in shadows.items()},
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), "ema" in sys.argv[4:])
