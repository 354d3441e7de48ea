//! What is read in a certificate: whose it is, and how long it holds. Whether it is good, rustls has judged before.

use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

/// A certificate with more names is nobody's identity.
const MAX_NAMES: usize = 64;

/// When it expires, in seconds since 1970; none if it is no certificate.
pub(super) fn expires_at(der: &CertificateDer<'_>) -> Option<i64> {
    Some(parse(der)?.validity().not_after.timestamp())
}

/// Its names, each with what it is: `dns:`, in lower case, and `uri:` of the alternative names, `cn:` of the subject. The
/// kinds are told apart so that an authority that checks one of them cannot be used to forge another.
pub(super) fn names(der: &CertificateDer<'_>) -> Vec<Box<str>> {
    let Some(certificate) = parse(der) else { return Vec::new() };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let alternative = alternative.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(format!("dns:{}", name.to_ascii_lowercase())),
        GeneralName::URI(uri) => Some(format!("uri:{uri}")),
        _ => None,
    });
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    alternative.chain(common.map(|name| format!("cn:{name}"))).take(MAX_NAMES).map(Into::into).collect()
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_say_of_what_kind_they_are() {
        let mut params = CertificateParams::new(["Studio.Example".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://corp/Studio".try_into().unwrap()));
        params.distinguished_name.push(DnType::CommonName, "studio");
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let found = names(made.der());
        let found: Vec<_> = found.iter().map(|name| &**name).filter(|name| !name.contains("rcgen")).collect();
        assert_eq!(found, ["dns:studio.example", "uri:spiffe://corp/Studio", "cn:studio"]);
        assert_eq!(expires_at(made.der()), Some(1_927_843_200));
        assert_eq!((names(&vec![1, 2, 3].into()), expires_at(&vec![1, 2, 3].into())), (vec![], None));
    }
}
