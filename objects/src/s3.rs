//! A bucket as the environment describes it: credentials, region, endpoint, TLS.

use crate::error::Error;
use crate::patience::Patience;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::{Certificate, ClientOptions, RetryConfig};
use std::time::Duration;

/// What is read of the environment, under the names that all S3 programs use.
const SETTINGS: &[(&str, AmazonS3ConfigKey)] = &[
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    ("AWS_DEFAULT_REGION", AmazonS3ConfigKey::DefaultRegion),
    ("AWS_REGION", AmazonS3ConfigKey::Region),
    ("AWS_ENDPOINT_URL", AmazonS3ConfigKey::Endpoint),
    ("AWS_ENDPOINT_URL_S3", AmazonS3ConfigKey::S3Endpoint),
    ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", AmazonS3ConfigKey::VirtualHostedStyleRequest),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
    ("AWS_METADATA_ENDPOINT", AmazonS3ConfigKey::MetadataEndpoint),
];

/// Any of these says where credentials come from.
const CREDENTIALS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
];

pub(crate) fn open(bucket: &str, env: &dyn Fn(&str) -> Option<String>, patience: &Patience) -> Result<AmazonS3, Error> {
    let settings = |why: String| Error::Settings { address: format!("s3://{bucket}"), why };
    let get = |name: &str| env(name).map(|text| text.trim().to_string()).filter(|text| !text.is_empty());
    let is_set = |name: &str| get(name).is_some_and(|text| text == "1" || text.eq_ignore_ascii_case("true"));
    let mut builder = AmazonS3Builder::new();
    for (name, key) in SETTINGS {
        if let Some(value) = get(name) {
            builder = builder.with_config(*key, value);
        }
    }
    let endpoint = get("AWS_ENDPOINT_URL_S3").or_else(|| get("AWS_ENDPOINT_URL"));
    check_credentials(&get, endpoint.is_some()).map_err(settings)?;
    let is_plain = endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
    if let Some(url) = &endpoint
        && !is_plain
        && !url.starts_with("https://")
    {
        return Err(settings(format!("AWS_ENDPOINT_URL \"{url}\" begins with neither https:// nor http://")));
    }
    if is_plain && !is_set("AWS_ALLOW_HTTP") {
        let url = endpoint.unwrap_or_default();
        let why =
            format!("AWS_ENDPOINT_URL {url} is readable on the network: use https://, or set AWS_ALLOW_HTTP=true");
        return Err(settings(why));
    }
    let client = client(&get, is_plain, patience).map_err(settings)?;
    builder
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // Every store has the plain DELETE of one object; some lack the one for many.
        .with_disable_bulk_delete(true)
        .with_client_options(client)
        // Tries are counted in one place: `patience`.
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .build()
        .map_err(|error| settings(error.to_string()))
}

/// Asking a cloud's metadata service is right only in that cloud: with an endpoint of one's own it would be waited for
/// in vain.
fn check_credentials(get: &dyn Fn(&str) -> Option<String>, has_endpoint: bool) -> Result<(), String> {
    const CURE: &str =
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN";
    let has = |name: &&str| get(name).is_some();
    for (one, other) in [
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
    ] {
        if has(&one) && !has(&other) {
            return Err(format!("{one} is set and {other} is not: set both"));
        }
    }
    let has_any = CREDENTIALS.iter().any(has);
    let is_off = get("AWS_EC2_METADATA_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    match !has_any && (has_endpoint || is_off) {
        true => Err(format!("there are no credentials: {CURE}")),
        false => Ok(()),
    }
}

fn client(get: &dyn Fn(&str) -> Option<String>, is_plain: bool, patience: &Patience) -> Result<ClientOptions, String> {
    // The process's default, unless it has chosen one: ring is the one TLS provider here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = ClientOptions::new()
        .with_allow_http(is_plain)
        .with_connect_timeout(Duration::from_secs(5).min(patience.request))
        .with_timeout(patience.request)
        .with_no_system_certificates(is_plain);
    if let Some(path) = get("AWS_CA_BUNDLE") {
        let pem = std::fs::read(&path).map_err(|error| format!("AWS_CA_BUNDLE {path}: {error}"))?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|error| format!("AWS_CA_BUNDLE {path}: {error}"))?;
        if certificates.is_empty() {
            return Err(format!("AWS_CA_BUNDLE {path} holds no certificate"));
        }
        client = certificates.into_iter().fold(client, ClientOptions::with_root_certificate);
        client = client.with_no_system_certificates(true);
    }
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(env: &[(&str, &str)]) -> String {
        let get = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        open("models", &get, &Patience::default()).map_or_else(|error| error.to_string(), |_| String::new())
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];

    #[test]
    fn what_is_missing_is_named_before_any_request() {
        let [key, secret] = KEYS;
        let here = ("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
        let allowed = ("AWS_ALLOW_HTTP", "true");
        for (env, says) in [
            (&[here, allowed][..], "there are no credentials: set AWS_ACCESS_KEY_ID"),
            (&[("AWS_EC2_METADATA_DISABLED", "true")], "there are no credentials"),
            (&[key], "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"),
            (&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")], "AWS_ROLE_ARN is not"),
            (&[key, secret, here], "AWS_ALLOW_HTTP=true"),
            (&[key, secret, ("AWS_ENDPOINT_URL", "127.0.0.1:9")], "neither https:// nor http://"),
            (&[key, secret, ("AWS_CA_BUNDLE", "/nonexistent.pem")], "AWS_CA_BUNDLE /nonexistent.pem"),
        ] {
            assert!(said(env).contains(says), "{env:?}: {}", said(env));
        }
        assert_eq!(said(&[key, secret, here, allowed]), "");
    }
}
