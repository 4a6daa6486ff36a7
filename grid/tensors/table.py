"""The op table as data: which ATen operations exist here, the row rule of each, and what is checked before it runs.

These names are ours, written here; the operations are bound to them once, at import of `grid.tensors.ops`. What is not
here is refused. A name is `<operation>.<overload>`; an operation whose name ends in one underscore writes to its first
argument and has the row rule of its twin without. To add one: name it here, give it a row rule (`grid.tensors.rules`) and
bounds (`grid.tensors.bounds`) if its kernel trusts its arguments, and run `tests/tensors`.

Left out on purpose: `resize_`, `set_`, `as_strided*` and storage operations (they reach memory that is not the tensor's),
overlapping views (`unfold`), everything whose result's shape depends on values, views that change dtype, and `squeeze_`,
`t_`, `transpose_`, which would change a pointer's shape under the feet of those who hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

RULES: Mapping[str, str] = MappingProxyType(
    {
        "elementwise": """
            abs.default abs_.default acos.default acosh.default add.Scalar add.Tensor add_.Scalar add_.Tensor
            addcdiv.default addcdiv_.default addcmul.default addcmul_.default alias.default asin.default asinh.default
            atan.default atan2.default atanh.default
            bitwise_and.Scalar bitwise_and.Tensor bitwise_and_.Scalar bitwise_and_.Tensor bitwise_not.default
            bitwise_not_.default bitwise_or.Scalar bitwise_or.Tensor bitwise_or_.Scalar bitwise_or_.Tensor
            bitwise_xor.Scalar bitwise_xor.Tensor bitwise_xor_.Scalar bitwise_xor_.Tensor
            ceil.default ceil_.default celu.default clamp.default clamp.Tensor clamp_.default clamp_.Tensor
            clamp_max.default clamp_max.Tensor clamp_max_.default clamp_min.default clamp_min.Tensor clamp_min_.default
            clamp_min_.Tensor clone.default copysign.Tensor copysign.Scalar cos.default cosh.default
            detach.default digamma.default div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode div_.Scalar div_.Tensor
            div_.Tensor_mode
            elu.default elu_.default elu_backward.default eq.Scalar eq.Tensor erf.default erfc.default erfinv.default
            exp.default exp_.default exp2.default expm1.default
            floor.default floor_.default floor_divide.default floor_divide.Scalar fmax.default fmin.default
            fmod.Scalar fmod.Tensor frac.default
            ge.Scalar ge.Tensor gelu.default gelu_backward.default gt.Scalar gt.Tensor
            hardshrink.default hardshrink_backward.default hardsigmoid.default hardsigmoid_.default
            hardsigmoid_backward.default hardswish.default hardswish_.default hardswish_backward.default
            hardtanh.default hardtanh_.default hardtanh_backward.default heaviside.default hypot.default
            isinf.default isnan.default isneginf.default isposinf.default
            le.Scalar le.Tensor leaky_relu.default leaky_relu_.default leaky_relu_backward.default
            lerp.Scalar lerp.Tensor lerp_.Scalar lerp_.Tensor lgamma.default lift_fresh.default lift_fresh_copy.default
            log.default log_.default log10.default log1p.default log2.default
            log_sigmoid_backward.default log_sigmoid_forward.default
            logaddexp.default logaddexp2.default logical_and.default logical_and_.default logical_not.default
            logical_not_.default logical_or.default logical_or_.default logical_xor.default
            logit.default logit_backward.default lt.Scalar lt.Tensor
            masked_fill.Scalar masked_fill.Tensor masked_fill_.Scalar masked_fill_.Tensor maximum.default maximum.out
            minimum.default minimum.out mish.default mish_backward.default mul.Scalar mul.Tensor mul_.Scalar mul_.Tensor
            nan_to_num.default ne.Scalar ne.Tensor neg.default neg_.default
            native_dropout_backward.default
            pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow_.Scalar pow_.Tensor _prelu_kernel.default
            _prelu_kernel_backward.default
            reciprocal.default reciprocal_.default relu.default relu_.default remainder.Scalar remainder.Tensor
            round.default round.decimals round_.default rsqrt.default rsqrt_.default rsub.Scalar rsub.Tensor
            sgn.default sigmoid.default sigmoid_.default sigmoid_backward.default sign.default signbit.default
            silu.default silu_.default silu_backward.default sin.default sinh.default
            sinc.default special_entr.default polygamma.default
            softplus.default softplus_backward.default softshrink.default softshrink_backward.default
            sqrt.default sqrt_.default square.default sub.Scalar sub.Tensor sub_.Scalar sub_.Tensor
            tan.default tanh.default tanh_.default tanh_backward.default threshold.default threshold_.default
            threshold_backward.default trunc.default
            where.self where.Scalar where.ScalarOther where.ScalarSelf xlogy.Tensor xlogy.Scalar_Other _to_copy.default
        """,
        "copy": "copy_.default copy.default",
        "fill": "fill_.Scalar fill_.Tensor fill.Scalar zero_.default",
        "constant": """
            zeros.default ones.default full.default scalar_tensor.default zeros_like.default ones_like.default
            full_like.default new_zeros.default new_ones.default new_full.default
            empty.memory_format empty_like.default new_empty.default new_empty_strided.default
        """,
        "sequence": """
            arange.default arange.start arange.start_step linspace.default eye.default eye.m
            tril_indices.default triu_indices.default
        """,
        "random": """
            rand.default randn.default randint.default randint.low randperm.default rand_like.default randn_like.default
            randint_like.default randint_like.low_dtype
        """,
        "draw": """
            bernoulli.default bernoulli.p bernoulli_.float bernoulli_.Tensor uniform_.default normal_.default
            exponential_.default random_.default random_.from random_.to
        """,
        "dropout": "native_dropout.default",
        "reduce": """
            sum.default sum.dim_IntList mean.default mean.dim var.correction std.correction var_mean.correction
            std_mean.correction linalg_vector_norm.default norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype
            logsumexp.default count_nonzero.default count_nonzero.dim_IntList nansum.default
        """,
        "extreme": """
            max.default max.dim min.default min.dim amax.default amin.default argmax.default argmin.default
            median.default median.dim nanmedian.default nanmedian.dim mode.default prod.default prod.dim_int
            any.default any.dim any.dims all.default all.dim all.dims aminmax.default kthvalue.default
        """,
        "along": """
            _softmax.default _log_softmax.default _softmax_backward_data.default _log_softmax_backward_data.default
            _safe_softmax.default cumsum.default cumprod.default cummax.default cummin.default logcumsumexp.default
            sort.default sort.stable topk.default flip.default roll.default tril.default triu.default
            glu.default glu_backward.default
        """,
        "view": "view.default _unsafe_view.default",
        "squeeze": "unsqueeze.default squeeze.default squeeze.dim squeeze.dims",
        "permute": "permute.default transpose.int t.default",
        "expand": "expand.default",
        "diagonal": "diagonal.default diagonal_copy.default",
        "diagonal_backward": "diagonal_backward.default diag_embed.default",
        "slice": "slice.Tensor",
        "select": "select.int",
        "split": "split.Tensor split_with_sizes.default unbind.int unsafe_split.Tensor unsafe_split_with_sizes.default",
        "index_select": "index_select.default",
        "index": "index.Tensor",
        "embedding": "embedding.default",
        "embedding_backward": "embedding_dense_backward.default",
        "gather": "gather.default",
        "scatter": "scatter.src scatter.value scatter_.src scatter_.value scatter_add.default scatter_add_.default",
        "index_put": "index_put.default index_put_.default",
        "index_add": "index_add.default index_add_.default",
        "index_write": """
            index_fill.int_Scalar index_fill_.int_Scalar index_copy.default index_copy_.default
        """,
        "part_scatter": "select_scatter.default slice_scatter.default",
        "part_backward": "select_backward.default slice_backward.default",
        "cat": "cat.default",
        "stack": "stack.default",
        "pad": "constant_pad_nd.default",
        "repeat": "repeat.default",
        "spatial": """
            avg_pool3d.default avg_pool3d_backward.default _adaptive_avg_pool3d.default
            _adaptive_avg_pool3d_backward.default max_pool3d_with_indices.default
            max_pool3d_with_indices_backward.default
            avg_pool2d.default avg_pool2d_backward.default _adaptive_avg_pool2d.default
            _adaptive_avg_pool2d_backward.default max_pool2d_with_indices.default
            max_pool2d_with_indices_backward.default adaptive_max_pool2d.default
            adaptive_max_pool2d_backward.default
            upsample_nearest2d.default upsample_nearest2d_backward.default
            upsample_bilinear2d.default upsample_bilinear2d_backward.default
            reflection_pad2d.default reflection_pad2d_backward.default replication_pad2d.default
            replication_pad2d_backward.default
        """,
        "contract": "mm.default addmm.default bmm.default baddbmm.default mv.default addmv.default dot.default vdot.default",
        "outer": "addr.default",
        "convolution": "convolution.default",
        "convolution_backward": "convolution_backward.default",
        "batch_norm": """
            native_batch_norm.default _native_batch_norm_legit.default _native_batch_norm_legit.no_stats
            _native_batch_norm_legit_no_training.default _native_batch_norm_legit_functional.default
            _batch_norm_with_update.default _batch_norm_with_update_functional.default _batch_norm_no_update.default
        """,
        "batch_norm_backward": "native_batch_norm_backward.default batch_norm_backward.default",
        "layer_norm": "native_layer_norm.default",
        "layer_norm_backward": "native_layer_norm_backward.default",
        "group_norm": "native_group_norm.default",
        "group_norm_backward": "native_group_norm_backward.default",
        "attention": """
            _scaled_dot_product_flash_attention_for_cpu.default
            _scaled_dot_product_flash_attention_for_cpu_backward.default
        """,
        "nll": "nll_loss_forward.default nll_loss2d_forward.default",
        "nll_backward": "nll_loss_backward.default nll_loss2d_backward.default",
        "loss": """
            mse_loss.default binary_cross_entropy.default binary_cross_entropy_with_logits.default huber_loss.default
            smooth_l1_loss.default soft_margin_loss.default
        """,
        "loss_backward": """
            mse_loss_backward.default binary_cross_entropy_backward.default huber_loss_backward.default
            smooth_l1_loss_backward.default soft_margin_loss_backward.default
        """,
        "histogram": "histc.default",
        "bucketize": "bucketize.Tensor bucketize.Scalar searchsorted.Tensor",
        "membership": "isin.Tensor_Tensor",
        "row_free": """
            _linalg_solve_ex.default linalg_inv_ex.default linalg_cholesky_ex.default _linalg_det.default
            _linalg_slogdet.default _linalg_eigh.default _linalg_svd.default linalg_lu_factor_ex.default
            linalg_lu_solve.default linalg_solve_triangular.default cholesky_solve.default linalg_qr.default
            trace.default dist.default _linalg_check_errors.default
        """,
        "lists": """
            _foreach_add_.List _foreach_add_.Scalar _foreach_sub_.List _foreach_mul_.List _foreach_mul_.Scalar
            _foreach_mul_.Tensor _foreach_div_.List _foreach_div_.Scalar _foreach_div_.ScalarList
            _foreach_addcmul_.Scalar _foreach_addcdiv_.Scalar _foreach_addcdiv_.ScalarList _foreach_lerp_.Scalar
            _foreach_neg_.default _foreach_sqrt_.default _foreach_zero_.default _foreach_maximum_.List
        """,
        "each": """
            _foreach_sqrt.default _foreach_add.List _foreach_add.Scalar _foreach_mul.Scalar _foreach_mul.Tensor
            _foreach_neg.default _foreach_norm.Scalar
        """,
    }
)
"""Row rule -> the operations that have it."""

BOUNDS: Mapping[str, str] = MappingProxyType(
    {
        "pieces": "split.Tensor split_with_sizes.default unbind.int unsafe_split.Tensor unsafe_split_with_sizes.default",
        "strides": "new_empty_strided.default",
        "index": "index.Tensor index_put.default index_put_.default",
        "dim_index": """
            index_select.default index_add.default index_add_.default index_fill.int_Scalar index_fill_.int_Scalar
            index_copy.default index_copy_.default gather.default scatter.src scatter.value scatter_.src scatter_.value
            scatter_add.default scatter_add_.default
        """,
        "embedding": "embedding.default",
        "embedding_backward": "embedding_dense_backward.default",
        "classes": "nll_loss_forward.default nll_loss2d_forward.default nll_loss_backward.default nll_loss2d_backward.default",
        "gradient": """
            avg_pool2d_backward.default _adaptive_avg_pool2d_backward.default max_pool2d_with_indices_backward.default
            upsample_nearest2d_backward.default upsample_bilinear2d_backward.default reflection_pad2d_backward.default
            replication_pad2d_backward.default glu_backward.default _softmax_backward_data.default
            adaptive_max_pool2d_backward.default _log_softmax_backward_data.default
            avg_pool3d_backward.default _adaptive_avg_pool3d_backward.default max_pool3d_with_indices_backward.default
        """,
        "upsample": "upsample_nearest2d.default upsample_bilinear2d.default",
        "layer_norm": "native_layer_norm.default native_layer_norm_backward.default",
        "group_norm": "native_group_norm.default native_group_norm_backward.default",
        "batch_norm": """
            native_batch_norm.default _native_batch_norm_legit.default _native_batch_norm_legit.no_stats
            _native_batch_norm_legit_no_training.default _native_batch_norm_legit_functional.default
            _batch_norm_with_update.default _batch_norm_with_update_functional.default _batch_norm_no_update.default
            native_batch_norm_backward.default batch_norm_backward.default
        """,
        "convolution": "convolution.default convolution_backward.default",
        "attention": """
            _scaled_dot_product_flash_attention_for_cpu.default
            _scaled_dot_product_flash_attention_for_cpu_backward.default
        """,
        "sequence": """
            arange.default arange.start arange.start_step linspace.default eye.default eye.m tril_indices.default
            triu_indices.default randperm.default
        """,
        "probability": "native_dropout.default",
        "pivots": "linalg_lu_solve.default",
        "unsorted": "searchsorted.Tensor",
        "floats": """
            mse_loss.default binary_cross_entropy.default binary_cross_entropy_with_logits.default huber_loss.default
            smooth_l1_loss.default soft_margin_loss.default mse_loss_backward.default
            binary_cross_entropy_backward.default huber_loss_backward.default smooth_l1_loss_backward.default
            soft_margin_loss_backward.default
        """,
        "histogram": "histc.default",
        "part": """
            select_backward.default slice_backward.default diagonal_backward.default select_scatter.default
            slice_scatter.default
        """,
        "target": "maximum.out minimum.out",
        "chances": "bernoulli.default bernoulli_.Tensor",
        "product": "addmm.default baddbmm.default addmv.default addr.default",
        "quotient": """
            div.Tensor_mode div.Scalar_mode div_.Tensor_mode floor_divide.default floor_divide.Scalar
        """,
    }
)
"""Bounds -> the operations that they are checked for. The others have "outputs": the size of the results alone."""

PRIVATE_BOUNDS = ("index", "dim_index", "embedding", "embedding_backward", "classes", "gradient", "pivots", "quotient", "chances")
"""Bounds that read values, and so may tell something about rows when they are broken."""

FAILING = ("binary_cross_entropy.default", "fmod.Tensor", "remainder.Tensor")
"""Operations whose kernels look at values, and raise: chances outside 0 to 1, whole numbers divided by zero. With these,
`PRIVATE_BOUNDS` and the rule "row_free", all that may fail by values is named."""

HIDDEN_WRITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "native_batch_norm.default": ("running_mean", "running_var"),
        "_batch_norm_with_update.default": ("running_mean", "running_var"),
    }
)
"""Arguments that an operation writes although its schema may not say so."""

DENSE_RULES = (
    "batch_norm",
    "batch_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "group_norm",
    "group_norm_backward",
    "attention",
    "nll_backward",
)
"""Rules of operations that run on dense operands alone: their kernels take some operand's memory for dense without looking,
and read past the end of one that is not."""

INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "_local_scalar_dense": "the value is at the node: `x.get().item()` asks for it",
        "nonzero": "use `torch.where(condition, x, torch.zeros_like(x))`; the result's shape would depend on values",
        "masked_select": "use `torch.where(condition, x, torch.zeros_like(x))`; the result's shape would depend on values",
        "masked_scatter": "use `torch.where(mask, a, b)`",
        "unique": "use `(x[:, None] == torch.arange(k)).sum(0)`",
        "unique2": "use `(x[:, None] == torch.arange(k)).sum(0)`",
        "bincount": "use `(x[:, None] == torch.arange(k)).sum(0)`",
        "histogram": "use `torch.histc(x, bins, min, max)` with a range",
        "unfold": "use slices and `torch.stack`, or a plan",
        "im2col": "use `torch.nn.functional.conv2d`, or a plan",
        "adaptive_max_pool3d": "use `torch.nn.functional.max_pool3d`",
        "as_strided": "use slices, `view` and `permute`",
        "_embedding_bag": "use `torch.nn.Embedding` and `.mean(1)`, or a plan with bags of one length",
        "_cdist_forward": "every row would meet every other row; use random Fourier features",
        "resize_": "make a new tensor",
        "set_": "make a new tensor",
        "squeeze_": "use `x = x.squeeze(...)`",
        "unsqueeze_": "use `x = x.unsqueeze(...)`",
        "transpose_": "use `x = x.transpose(...)`",
        "t_": "use `x = x.t()`",
        "mkldnn_rnn_layer": "use a plan, or call the LSTM inside `with torch.backends.mkldnn.flags(enabled=False):`",
        "view": "a view as another dtype would show the bits of values; `x.to(dtype)` converts them",
        "_fused_adam_": "make the optimizer without fused=True",
        "_fused_adamw_": "make the optimizer without fused=True",
        "_fused_sgd_": "make the optimizer without fused=True",
        "_fused_adagrad_": "make the optimizer without fused=True",
        "multi_margin_loss": "use `torch.nn.functional.cross_entropy`, or write it out with `torch.nn.functional.one_hot(y, k)`",
        "multilabel_margin_loss_forward": "use `torch.nn.functional.binary_cross_entropy_with_logits`",
        "convolution_overrideable": "use `torch.nn.functional.conv2d`",
        "multinomial": "draw locally and send the result",
        "linalg_lstsq": "use `torch.linalg.solve(x.T @ x, x.T @ y)`",
        "linalg_pinv": "use `torch.linalg.solve`",
        "repeat_interleave": "use `x[:, None].expand(...)` and `reshape`",
        "equal": "compare with `==` and reduce, or `get()` both first",
        "is_same_size": "compare `x.shape`",
    }
)
"""Operation without its overload -> what to write instead, for those that people reach for."""
