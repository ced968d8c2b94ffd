//! Which hosts are registries of AWS, by their names.
//!
//! | name | what |
//! |---|---|
//! | `ACCOUNT.dkr.ecr.REGION.amazonaws.com` | a region's, also `ecr-fips`; `.com.cn`, `.eu` and those of the closed partitions |
//! | `ACCOUNT.dkr-ecr.REGION.on.aws` | the same by IPv4 and IPv6, also `dkr-ecr-fips`; `.on.amazonwebservices.com.cn`, `.eu` |
//! | `ENDPOINT.dkr.ecr.REGION.vpce.amazonaws.com` | an interface endpoint by its own name |
//! | `public.ecr.aws`, `ecr-public.aws.com` | the public gallery |
//!
//! A name that only looks alike gets nothing: what AWS hands out for a host is sent to it.

/// The domains of the partitions, behind the region.
const DOMAINS: [&str; 8] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
    "vpce.amazonaws.com",
];

/// The domains of what answers by both protocols.
const DUAL_STACK_DOMAINS: [&str; 3] =
    ["on.aws", "on.amazonwebservices.com.cn", "on.amazonwebservices.eu"];

/// A registry of AWS.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum EcrHost {
    /// An account's, in a region.
    Private {
        /// Twelve digits; `None` where the name does not tell.
        account: Option<String>,
        region: String,
        fips: bool,
        dual_stack: bool,
    },
    /// The public gallery.
    Public,
}

impl EcrHost {
    /// What `host`, with a port or without, is; `None`: nothing of AWS's.
    pub(super) fn parse(host: &str) -> Option<Self> {
        let name = host.split_once(':').map_or(host, |(name, _)| name);
        if matches!(name, "public.ecr.aws" | "ecr-public.aws.com") {
            return Some(Self::Public);
        }
        let (owner, rest) = name.split_once('.')?;
        let (service, rest) = match rest.strip_prefix("dkr.") {
            Some(rest) => rest.split_once('.')?,
            None => rest.split_once('.')?,
        };
        let dual_stack = service.starts_with("dkr-");
        let fips = match service {
            "ecr" | "dkr-ecr" => false,
            "ecr-fips" | "dkr-ecr-fips" => true,
            _ => return None,
        };
        // `ACCOUNT.ecr.REGION…` is none of the forms.
        if name.split('.').nth(1) != Some(if dual_stack { service } else { "dkr" }) {
            return None;
        }
        let (region, domain) = rest.split_once('.')?;
        let known = if dual_stack { &DUAL_STACK_DOMAINS[..] } else { &DOMAINS[..] };
        let of_region = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !known.contains(&domain) || region.is_empty() || !region.chars().all(of_region) {
            return None;
        }
        let is_account = owner.len() == 12 && owner.bytes().all(|byte| byte.is_ascii_digit());
        let is_endpoint = domain.starts_with("vpce.") && owner.starts_with("vpce-");
        (is_account || is_endpoint).then(|| Self::Private {
            account: is_account.then(|| owner.to_owned()),
            region: region.to_owned(),
            fips,
            dual_stack,
        })
    }
}

impl std::fmt::Display for EcrHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Private { region, .. } => write!(f, "AWS (ECR in {region})"),
            Self::Public => f.write_str("AWS (ECR Public)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_known() {
        let private = |account: &str, region: &str, fips, dual_stack| {
            let account = (!account.is_empty()).then(|| account.to_owned());
            Some(EcrHost::Private { account, region: region.to_owned(), fips, dual_stack })
        };
        let account = "123456789012";
        for (rest, region, fips, dual) in [
            ("dkr.ecr.us-east-1.amazonaws.com", "us-east-1", false, false),
            ("dkr.ecr.us-east-1.amazonaws.com:443", "us-east-1", false, false),
            ("dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", true, false),
            ("dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", false, false),
            ("dkr.ecr.us-iso-east-1.c2s.ic.gov", "us-iso-east-1", false, false),
            ("dkr.ecr.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1", false, false),
            ("dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1", false, false),
            ("dkr-ecr.eu-west-1.on.aws", "eu-west-1", false, true),
            ("dkr-ecr-fips.us-west-2.on.aws", "us-west-2", true, true),
            ("dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "cn-north-1", false, true),
        ] {
            let found = EcrHost::parse(&format!("{account}.{rest}"));
            assert_eq!(found, private(account, region, fips, dual), "{rest}");
        }
        let endpoint = "vpce-0a1b-2c3d.dkr.ecr.eu-west-1.vpce.amazonaws.com";
        assert_eq!(EcrHost::parse(endpoint), private("", "eu-west-1", false, false));
        assert_eq!(EcrHost::parse("public.ecr.aws"), Some(EcrHost::Public));
        assert_eq!(EcrHost::parse("ecr-public.aws.com"), Some(EcrHost::Public));
    }

    #[test]
    fn what_only_looks_alike_is_not() {
        for host in [
            "123456789012.dkr.ecr.us-east-1.example.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com.example",
            "123456789012.dkr.ecr.us-east-1.on.aws",
            "123456789012.dkr-ecr.us-east-1.amazonaws.com",
            "123456789012.dkr.s3.us-east-1.amazonaws.com",
            "123456789012.ecr.us-east-1.amazonaws.com",
            "123456789012.dkr.dkr-ecr.us-east-1.on.aws",
            "123456789012.dkr.ecr..amazonaws.com",
            "123456789012.dkr.ecr.amazonaws.com",
            "12345.dkr.ecr.us-east-1.amazonaws.com",
            "evil.dkr.ecr.us-east-1.vpce.amazonaws.com",
            "vpce-1.dkr.ecr.us-east-1.amazonaws.com",
            "x.public.ecr.aws",
            "public.ecr.aws.example",
            "docker.io",
            "localhost:5000",
        ] {
            assert_eq!(EcrHost::parse(host), None, "{host}");
        }
    }
}
