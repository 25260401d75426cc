//! The few messages of TensorBoard's event files that a run needs, with the field numbers of `event.proto`,
//! `summary.proto` and `tensor.proto`.

use prost::{Enumeration, Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
    #[prost(oneof = "Datum", tags = "2, 8")]
    datum: Option<Datum>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Datum {
    #[prost(float, tag = "2")]
    Simple(f32),
    #[prost(message, tag = "8")]
    Tensor(Tensor),
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(enumeration = "DataType", tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

/// Without sizes: a single value.
#[derive(Clone, PartialEq, Message)]
struct Shape {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
enum DataType {
    Invalid = 0,
    String = 7,
}

impl Event {
    /// The first event of a file.
    pub fn version() -> Event {
        Event { wall_time: 0.0, step: 0, what: Some(What::FileVersion("brain.Event:2".into())) }
    }

    pub fn of(step: i64, value: Vec<Value>) -> Event {
        Event { wall_time: 0.0, step, what: Some(What::Summary(Summary { value })) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

impl Value {
    /// The format keeps scalars as f32.
    pub fn scalar(tag: &str, value: f64) -> Value {
        Value { tag: tag.into(), metadata: None, datum: Some(Datum::Simple(value as f32)) }
    }

    pub fn text(tag: &str, text: &str) -> Value {
        let plugin_data = Some(PluginData { plugin_name: "text".into() });
        let tensor = Tensor {
            dtype: DataType::String as i32,
            shape: Some(Shape {}),
            string_val: vec![text.as_bytes().to_vec()],
        };
        Value { tag: tag.into(), metadata: Some(Metadata { plugin_data }), datum: Some(Datum::Tensor(tensor)) }
    }
}
