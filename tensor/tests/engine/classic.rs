//! The four little programs of examples/classic_*.rs run, and do what they say.

#[path = "../../examples/classic_named_device.rs"]
mod device;
#[path = "../../examples/classic_expression.rs"]
mod expression;

use device::define_and_run::by_run as two_layers;

#[test]
fn the_gradients_of_a_sum_of_products_are_the_factors() {
    let expression::Outcome { x, y, z, c } = expression::compute().unwrap();
    let numbers = |t: &elastic_tensor::eager::Tensor| t.to_vec::<f32>().unwrap();
    assert_eq!(numbers(&x.grad().unwrap()), numbers(&y));
    assert_eq!(numbers(&y.grad().unwrap()), numbers(&x));
    assert_eq!(numbers(&z.grad().unwrap()), [1.0; 12]);
    let exact: f64 = numbers(&x).iter().zip(numbers(&y)).zip(numbers(&z)).map(|((x, y), z)| (x * y + z) as f64).sum();
    assert!((c.item().unwrap() - exact).abs() < 1e-5);
}

#[test]
fn the_net_of_two_layers_learns_its_batch_by_heart() {
    let losses = two_layers::train(500).unwrap();
    assert!(losses[0] > 1e7 && losses[499] < 1e-2, "from {} to {}", losses[0], losses[499]);
}

#[test]
fn define_and_run_has_the_bits_of_define_by_run() {
    let bits = |losses: Vec<f32>| losses.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let by_run = bits(two_layers::train(40).unwrap());
    assert_eq!(bits(device::train("cpu", 40).unwrap()), by_run);
}

#[test]
fn a_device_that_is_not_there_is_refused_by_name() {
    let missing = device::train("cuda:0", 1).unwrap_err().to_string();
    assert!(missing.contains("cuda:0") && missing.contains("CPU only"), "{missing}");
    assert!(device::train("tpu", 1).unwrap_err().to_string().contains("name `cpu`"));
}
