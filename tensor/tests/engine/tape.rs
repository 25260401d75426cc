//! Define-by-run gradients: what passes, what is added up, what is refused.

use elastic_tensor::eager::{DType, Result, Tensor, checkpoint, no_grad};
use std::cell::RefCell;
use std::rc::Rc;

fn leaf(xs: &[f32]) -> Tensor {
    Tensor::from_vec(xs.to_vec(), &[xs.len()]).unwrap().requires_grad().unwrap()
}

fn random_leaf(name: &str, shape: &[usize]) -> Tensor {
    Tensor::randn(3, name, shape).requires_grad().unwrap()
}

fn grad(x: &Tensor) -> Vec<f32> {
    x.grad().expect("a gradient came").to_vec().unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    grad(x).into_iter().map(f32::to_bits).collect()
}

#[test]
fn control_flow_is_followed_as_it_ran() {
    let x = leaf(&[2.0]);
    let mut y = x.clone();
    while y.item().unwrap() < 100.0 {
        y = y.mul(&x).unwrap();
    }
    // 2^7: the gradient is 7 · 2^6.
    y.backward().unwrap();
    assert_eq!((y.item().unwrap(), grad(&x)), (128.0, vec![448.0]));
}

#[test]
fn a_tensor_used_twice_adds_both_gradients_and_backward_adds_to_what_is_there() {
    let x = leaf(&[3.0, -1.0]);
    let loss = || x.mul(&x).unwrap().add(&x).unwrap().sum_all().unwrap();
    loss().backward().unwrap();
    assert_eq!(grad(&x), [7.0, -1.0]);
    loss().backward().unwrap();
    assert_eq!(grad(&x), [14.0, -2.0]);
    x.zero_grad();
    assert!(x.grad().is_none());
}

#[test]
fn nothing_is_recorded_in_no_grad_nor_behind_a_detached_tensor() {
    let x = leaf(&[3.0]);
    let y = no_grad(|| x.mul(&x).unwrap());
    assert!(!y.is_tracked() && y.backward().unwrap_err().to_string().contains("not made of any"));
    x.mul(&x.detach()).unwrap().backward().unwrap();
    assert_eq!(grad(&x), [3.0], "one factor is a constant");
    assert!(x.mul(&x).unwrap().is_tracked(), "recording is on again");
    let panicked = std::panic::catch_unwind(|| no_grad(|| panic!("inside")));
    assert!(panicked.is_err() && x.mul(&x).unwrap().is_tracked(), "also after a panic");
}

#[test]
fn a_tape_is_walked_once_unless_it_is_kept() {
    let x = leaf(&[3.0]);
    let y = x.mul(&x).unwrap();
    y.backward_keep().unwrap();
    y.backward().unwrap();
    assert_eq!(grad(&x), [12.0]);
    assert!(y.backward().unwrap_err().to_string().contains("backward_keep()"));
    assert_eq!(grad(&x), [12.0], "an error adds nothing");
}

#[test]
fn a_gradient_is_of_one_number_or_given() {
    let x = leaf(&[1.0, 2.0]);
    let y = x.mul(&x).unwrap();
    assert!(y.backward().unwrap_err().to_string().contains("2 elements"));
    y.backward_with(&Tensor::from_vec(vec![1.0f32, 10.0], &[2]).unwrap()).unwrap();
    assert_eq!(grad(&x), [2.0, 40.0]);
    assert!(x.backward_with(&Tensor::ones(&[3], DType::F32)).is_err());
    assert!(Tensor::ones(&[1], DType::I64).requires_grad().unwrap_err().to_string().contains("only floats"));
}

#[test]
fn hooks_see_a_complete_gradient_and_may_replace_it() {
    let x = leaf(&[1.0, 2.0]);
    let y = x.mul_scalar(3.0).unwrap();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let watch = |name: &'static str| {
        let seen = seen.clone();
        move |grad: &Tensor| {
            seen.borrow_mut().push((name, grad.to_vec::<f32>().unwrap()));
            Ok(None)
        }
    };
    y.register_hook(watch("y")).unwrap();
    y.register_hook(|grad| Ok(Some(grad.mul_scalar(10.0)?))).unwrap();
    y.register_hook(watch("y after")).unwrap();
    x.register_hook(watch("x")).unwrap();
    y.keep_grad();
    // y has two users: its hooks run once, on the sum.
    y.mul(&y).unwrap().add(&y).unwrap().sum_all().unwrap().backward().unwrap();
    let wanted = [("y", vec![7.0, 13.0]), ("y after", vec![70.0, 130.0]), ("x", vec![210.0, 390.0])];
    assert_eq!(*seen.borrow(), wanted);
    assert_eq!((grad(&y), grad(&x)), (vec![70.0, 130.0], vec![210.0, 390.0]));
    assert!(x.detach().register_hook(|_| Ok(None)).is_err());
}

#[test]
fn a_hook_that_fails_or_changes_the_shape_stops_backward_and_no_leaf_is_touched() {
    for hook in
        [(|g: &Tensor| g.reshape(&[3])) as fn(&Tensor) -> Result<Tensor>, |_| Ok(Tensor::zeros(&[1], DType::F32))]
    {
        let (x, w) = (leaf(&[1.0, 2.0]), leaf(&[1.0, 1.0]));
        let y = x.mul(&w).unwrap();
        x.register_hook(move |g| hook(g).map(Some)).unwrap();
        assert!(y.sum_all().unwrap().backward().is_err());
        assert!(x.grad().is_none() && w.grad().is_none());
    }
}

#[test]
fn a_saved_tensor_that_was_changed_in_place_is_refused_with_op_shape_and_cure() {
    let x = leaf(&[1.0, 2.0]);
    let h = x.mul_scalar(2.0).unwrap();
    let y = h.exp().unwrap();
    let loss = y.mul(&h).unwrap().sum_all().unwrap();
    h.add_(&Tensor::ones(&[2], DType::F32)).unwrap();
    let refused = loss.backward().unwrap_err().to_string();
    for part in ["mul: ", "[2]", "changed in place", "compute a new tensor"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(x.grad().is_none());
    // A result that its own gradient is made from.
    let y = x.exp().unwrap();
    let loss = y.sum_all().unwrap();
    y.mul_(&Tensor::full(&[], 2.0, DType::F32)).unwrap();
    assert!(loss.backward().unwrap_err().to_string().starts_with("exp: "));
    let wrong = x.add(&Tensor::ones(&[3], DType::F32)).unwrap_err().to_string();
    assert!(wrong.starts_with("add: shapes [2] and [3] do not broadcast"), "{wrong}");
}

#[test]
fn a_change_in_place_is_part_of_the_history_where_nothing_needs_the_old_numbers() {
    let (x, w) = (leaf(&[1.0, 2.0]), leaf(&[5.0, 7.0]));
    let h = x.mul_scalar(2.0).unwrap();
    h.mul_(&w).unwrap();
    h.add_(&x).unwrap();
    assert_eq!(h.to_vec::<f32>().unwrap(), [11.0, 30.0]);
    h.sum_all().unwrap().backward().unwrap();
    assert_eq!((grad(&x), grad(&w)), (vec![11.0, 15.0], vec![2.0, 4.0]));
}

#[test]
fn a_leaf_is_changed_in_no_grad_only_and_its_clones_are_the_same_tensor() {
    let x = leaf(&[1.0, 2.0]);
    let refused = x.add_(&x).unwrap_err().to_string();
    assert!(refused.contains("[2]") && refused.contains("no_grad"), "{refused}");
    let (same, other) = (x.clone(), x.detach());
    no_grad(|| x.fill_(9.0)).unwrap();
    assert_eq!(same.to_vec::<f32>().unwrap(), [9.0, 9.0]);
    assert_eq!(other.to_vec::<f32>().unwrap(), [1.0, 2.0], "a detached tensor is a value of its own");
    assert!(no_grad(|| x.add_(&Tensor::ones(&[3, 2], DType::F32))).is_err(), "it cannot grow");
    let whole = Tensor::arange(3, DType::I64);
    assert!(whole.mul_(&Tensor::full(&[], 0.5, DType::F32)).unwrap_err().to_string().contains("f32"));
    whole.sub_(&Tensor::scalar(1i64)).unwrap();
    whole.copy_(&whole.mul(&whole).unwrap()).unwrap();
    assert_eq!(whole.to_vec::<i64>().unwrap(), [1, 0, 1]);
}

/// A net with every kind of step; `w` is used inside and outside of the block.
fn net(w: &Tensor, v: &Tensor, x: &Tensor, is_recomputed: bool) -> Tensor {
    let (w2, v2) = (w.clone(), v.clone());
    let block = move |x: &[Tensor]| -> Result<Tensor> {
        let h = x[0].matmul(&w2)?.tanh()?;
        let h = h.add(&x[0].softmax(-1)?)?;
        h.mul(&v2)?.layer_norm(&v2, &v2.mul_scalar(0.1)?, 1e-5)
    };
    let mut h = x.matmul(w).unwrap().gelu().unwrap();
    for _ in 0..3 {
        h = match is_recomputed {
            true => checkpoint(&[&h], block.clone()).unwrap(),
            false => block(std::slice::from_ref(&h)).unwrap(),
        };
    }
    h.mul(&h).unwrap().mean(&[]).unwrap()
}

#[test]
fn a_recomputed_block_has_the_bits_of_one_that_was_kept() {
    let run = |is_recomputed| {
        let (w, v, x) = (random_leaf("w", &[17, 17]), random_leaf("v", &[17]), random_leaf("x", &[33, 17]));
        let loss = net(&w, &v, &x, is_recomputed);
        loss.backward().unwrap();
        (loss.to_vec::<f32>().unwrap()[0].to_bits(), [&w, &v, &x].map(bits))
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_block_is_run_again_only_when_the_gradient_comes_and_its_input_must_be_as_it_was() {
    let runs = Rc::new(RefCell::new(0));
    let (x, count) = (leaf(&[1.0, 2.0]), runs.clone());
    let block = move |x: &[Tensor]| {
        *count.borrow_mut() += 1;
        x[0].exp()?.mul(&x[0])
    };
    let h = x.mul_scalar(1.0).unwrap();
    let y = checkpoint(&[&h], block.clone()).unwrap().sum_all().unwrap();
    assert_eq!(*runs.borrow(), 1);
    y.backward().unwrap();
    assert_eq!(*runs.borrow(), 2);
    let h = x.mul_scalar(1.0).unwrap();
    let y = checkpoint(&[&h], block.clone()).unwrap().sum_all().unwrap();
    h.fill_(0.0).unwrap();
    assert!(y.backward().unwrap_err().to_string().starts_with("checkpoint: "));
    no_grad(|| checkpoint(&[&x], block.clone())).unwrap();
    assert!(!no_grad(|| checkpoint(&[&x], block)).unwrap().is_tracked());
}

#[test]
fn a_chain_of_two_hundred_thousand_steps_needs_no_deep_stack() {
    let long = || {
        let mut y = leaf(&[1.0]);
        for _ in 0..200_000 {
            y = y.add_scalar(1.0).unwrap();
        }
        y
    };
    let y = long();
    y.backward().unwrap();
    assert_eq!(y.item().unwrap(), 200_001.0);
    // Never walked: it is let go link by link.
    drop(long());
}

#[test]
fn sixteen_bit_floats_are_rounded_on_the_way_back_and_their_gradients_once() {
    for dtype in [DType::Bf16, DType::F16] {
        let x = Tensor::from_vec(vec![1.001f32, -2.3, 0.7], &[3])
            .unwrap()
            .to_dtype(dtype)
            .unwrap()
            .requires_grad()
            .unwrap();
        let wide = x.to_dtype(DType::F32).unwrap().detach().requires_grad().unwrap();
        let y = x.mul(&x).unwrap();
        assert_eq!(y.dtype(), dtype);
        let exact = wide.mul(&wide).unwrap();
        assert_eq!(y.to_storage().unwrap(), exact.to_dtype(dtype).unwrap().to_storage().unwrap());
        // Three uses, added in f32: the gradient is rounded where it is stored, and where y was.
        y.add(&x).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap().backward().unwrap();
        let got = x.grad().unwrap();
        assert_eq!(got.dtype(), dtype);
        let wanted = wide.detach().mul_scalar(2.0).unwrap().add_scalar(1.0).unwrap().to_dtype(dtype).unwrap();
        assert_eq!(got.to_storage().unwrap(), wanted.to_storage().unwrap());
    }
}

#[test]
fn gradients_pass_between_f32_and_f64() {
    let (x, y) = (leaf(&[3.0]), Tensor::from_vec(vec![0.1f64], &[1]).unwrap().requires_grad().unwrap());
    let z = x.mul(&y).unwrap();
    assert_eq!(z.dtype(), DType::F64);
    z.backward().unwrap();
    assert_eq!((grad(&x), y.grad().unwrap().to_vec::<f64>().unwrap()), (vec![0.1], vec![3.0]));
}

#[test]
fn the_number_of_threads_of_a_tensors_thread_changes_no_bit() {
    let run = |threads| {
        elastic_tensor::eager::set_threads(threads);
        let (w, x) = (random_leaf("w", &[70, 60]), random_leaf("x", &[900, 70]));
        let h = x.matmul(&w).unwrap().silu().unwrap();
        let loss = h.softmax(-1).unwrap().mul(&h).unwrap().sum(&[0]).unwrap().exp().unwrap().mean(&[]).unwrap();
        loss.add(&x.amax(&[0]).unwrap().sum_all().unwrap()).unwrap().backward().unwrap();
        [&w, &x].map(bits)
    };
    let wanted = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == wanted, "{threads} threads");
    }
}

/// Every method against finite differences in f64, through the tape.
#[test]
fn methods_have_the_gradients_of_finite_differences() {
    type F = fn(&Tensor) -> Result<Tensor>;
    let methods: [F; 22] = [
        |x| x.var(&[1], 1),
        |x| x.var(&[], 0),
        |x| x.mean(&[0, 2]),
        |x| x.sum(&[-1, 0])?.mul(&x.amax(&[0, 2])?),
        |x| x.amin(&[1])?.exp(),
        |x| x.softmax(1),
        |x| x.log_softmax(0),
        |x| x.matmul(&x.transpose(1, 2)?),
        |x| x.matmul(&x.at(0, 1)?.t()?),
        |x| x.at(0, 0)?.matmul(&x.at(0, 1)?.at(0, -1)?),
        |x| x.slice(&[(1..).into(), elastic_tensor::eager::Index::every(-2)]),
        |x| Tensor::concat(&[x, &x.exp()?, x], -1),
        |x| Tensor::stack(&[x, &x.tanh()?], 1)?.silu(),
        |x| x.take(2, &Tensor::from_vec(vec![0i64, -1, 0], &[3])?),
        |x| x.gather(1, &Tensor::from_vec(vec![2i64, 0, 1, 1, 2, 0, 0, 0], &[2, 1, 4])?),
        |x| x.gt(&Tensor::full(&[], 0.1, DType::F64))?.select(&x.powf(3.0)?, &x.abs()?),
        |x| x.maximum(&x.neg()?.mul_scalar(0.3)?)?.minimum(&Tensor::full(&[4], 0.7, DType::F64)),
        |x| x.flatten()?.unsqueeze(0)?.broadcast_to(&[3, 24])?.sigmoid(),
        |x| x.div(&x.exp()?.add_scalar(1.0)?)?.squeeze(0).or_else(|_| x.div_scalar(3.0)),
        |x| x.linear(&x.at(0, 0)?, Some(&x.at(0, 1)?.at(1, 2)?))?.gelu(),
        |x| x.reshape(&[-1, 4])?.cross_entropy(&Tensor::from_vec(vec![0i64, 1, 2, -1, 3, 0], &[6])?),
        |x| x.clamp(-0.4, 0.6)?.permute(&[2, 0, 1])?.sqrt_of_square(),
    ];
    for (number, f) in methods.iter().enumerate() {
        let x = Tensor::uniform(9, "x", &[2, 3, 4]).to_dtype(DType::F64).unwrap().requires_grad().unwrap();
        let weigh = |x: &Tensor| {
            let y = f(x)?;
            let weights = Tensor::uniform(1, "dy", y.shape()).to_dtype(DType::F64)?;
            y.mul(&weights)?.sum_all()
        };
        weigh(&x).unwrap_or_else(|e| panic!("method {number}: {e}")).backward().unwrap();
        let got = x.grad().unwrap().to_vec::<f64>().unwrap();
        let at = x.to_vec::<f64>().unwrap();
        for i in 0..at.len() {
            let value = |by: f64| {
                let mut moved = at.clone();
                moved[i] += by;
                weigh(&Tensor::from_vec(moved, &[2, 3, 4]).unwrap()).unwrap().item().unwrap()
            };
            let wanted = (value(1e-6) - value(-1e-6)) / 2e-6;
            assert!((got[i] - wanted).abs() < 1e-7, "method {number}, element {i}: {} and {wanted}", got[i]);
        }
    }
}

trait SqrtOfSquare {
    fn sqrt_of_square(&self) -> Result<Tensor>;
}

impl SqrtOfSquare for Tensor {
    fn sqrt_of_square(&self) -> Result<Tensor> {
        self.mul(self)?.add_scalar(0.5)?.sqrt()?.ln()
    }
}
