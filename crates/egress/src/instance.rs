//! The egress of one instance: what its look-ups are answered with, and where its connections lead.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use faena_domain::identity::{INTERNAL_PORT, internal_name};
use faena_domain::{FunctionName, Network};
use tokio::net::TcpStream;

use crate::connect::{Asker, Reason, Refusal, Tunnel, Way, connect};
use crate::dns::{self, Answer, Kind, Question};
use crate::names::{Names, is_synthetic};
use crate::policy::{Denial, EgressPolicy, Reach};

/// What a connection of an instance leads to.
#[derive(Debug)]
pub enum Destination {
    /// A server.
    World(TcpStream, Way),
    /// Another function of the namespace, which the platform calls.
    Function(FunctionName),
}

/// What judges and connects for one instance.
#[derive(Debug)]
pub struct InstanceEgress {
    policy: Arc<EgressPolicy>,
    reach: Reach,
    asker: Asker,
    names: Names,
}

impl InstanceEgress {
    /// Nothing is looked up yet.
    pub fn new(policy: Arc<EgressPolicy>, reach: Reach, asker: Asker) -> Self {
        Self { policy, reach, asker, names: Names::default() }
    }

    /// What the operator permits.
    pub fn policy(&self) -> &EgressPolicy {
        &self.policy
    }

    /// Connects to a host that was named, as a proxy is asked to.
    ///
    /// # Errors
    /// A [`Refusal`] that names the host.
    pub async fn connect(&self, (host, port): (&str, u16), tunnel: Tunnel) -> Result<Destination, Refusal> {
        // As a look-up has it: without the dot of the root, and in lower case.
        let host = &*host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let Some(name) = internal_name(host) else {
            let (stream, way) = connect(&self.policy, (&self.reach, &self.asker), (host, port), tunnel).await?;
            return Ok(Destination::World(stream, way));
        };
        let denied = |denial| Refusal { target: format!("{host}:{port}"), reason: Reason::Denied(denial) };
        self.reach.judge_call(name).map_err(denied)?;
        match name.parse() {
            Ok(name) if port == INTERNAL_PORT => Ok(Destination::Function(name)),
            Ok(_) => Err(denied(Denial::Port(port))),
            Err(_) => Err(denied(Denial::Uncalled)),
        }
    }

    /// Connects to an address that was dialled; returns the host that it stands for, too.
    ///
    /// # Errors
    /// A [`Refusal`] that names the host.
    pub async fn dial(&self, target: SocketAddrV4) -> Result<(Destination, String), Refusal> {
        let host = match self.names.name_of(*target.ip()) {
            Some(name) => name,
            // It stood for a name that was forgotten, or never for any.
            None if is_synthetic(*target.ip()) => {
                return Err(Refusal { target: target.to_string(), reason: Reason::NoSuchName });
            }
            None => target.ip().to_string(),
        };
        let destination = self.connect((&host, target.port()), Tunnel::Yes).await?;
        Ok((destination, host))
    }

    /// Names that a client may name in TLS that has dialled this host; none where any may be named, or where it has dialled an
    /// address.
    pub fn server_names(&self, host: &str, port: u16) -> Option<Vec<String>> {
        let Network::Listed(rules) = &self.reach.network else { return None };
        if host.parse::<IpAddr>().is_ok() || internal_name(host).is_some() {
            return None;
        }
        let patterns = rules.iter().filter_map(|rule| rule.name_pattern(port));
        Some(patterns.chain([host.to_owned()]).collect())
    }

    /// The host that an address stands for, or the address itself.
    pub fn host_of(&self, address: Ipv4Addr) -> String {
        self.names.name_of(address).unwrap_or_else(|| address.to_string())
    }

    /// Answers a DNS query. A refusal for lack of a rule is returned beside the reply.
    pub async fn answer(&self, query: &[u8], by_datagram: bool) -> (Vec<u8>, Option<Refusal>) {
        let question = match dns::parse(query) {
            Ok(question) => question,
            Err(reply) => return (reply, None),
        };
        let answered = self.look_up(&question).await;
        let (answer, refusal) = match answered {
            Ok(answer) => (answer, None),
            Err(refusal) => match refusal.reason {
                Reason::Denied(Denial::Uncalled) => (Answer::NoSuchName, Some(refusal)),
                Reason::Denied(_) => (Answer::Refused, Some(refusal)),
                Reason::NoSuchName => (Answer::NoSuchName, None),
                Reason::NoAddress => (Answer::Nothing, None),
                _ => (Answer::Failed, None),
            },
        };
        (question.reply(answer, by_datagram), refusal)
    }

    async fn look_up(&self, Question { name, kind, .. }: &Question) -> Result<Answer, Refusal> {
        let denied = |denial| Refusal { target: name.clone(), reason: Reason::Denied(denial) };
        if let Some(function) = internal_name(name) {
            self.reach.judge_call(function).map_err(denied)?;
            let address = || Answer::Address(self.names.address_of(name));
            return Ok(if *kind == Kind::Address { address() } else { Answer::Nothing });
        }
        // Before any query leaves: a name can carry data out as well as a connection.
        self.reach.judge_lookup(name).map_err(denied)?;
        match kind {
            Kind::Absent => Ok(Answer::Nothing),
            Kind::Address => Ok(Answer::Address(self.address_of(name).await?)),
            Kind::Records(_) if self.policy.upstream.is_some() => Ok(Answer::Nothing),
            Kind::Records(kind) => {
                let look = async |resolver: &crate::resolver::Resolver| resolver.records(name, *kind).await;
                self.asker.look_up(&self.policy, name, look).await.map(Answer::Records)
            }
        }
    }

    /// The address that stands for a name, if it may be reached by any port.
    async fn address_of(&self, name: &str) -> Result<Ipv4Addr, Refusal> {
        let Self { policy, reach, asker, names } = self;
        if policy.upstream.as_ref().is_some_and(|upstream| upstream.permits(name)) {
            // Which address it has is that proxy's to find out.
            return Ok(names.address_of(name));
        }
        let denied = |denial| Refusal { target: name.to_owned(), reason: Reason::Denied(denial) };
        if policy.upstream.is_some() && policy.networks.is_empty() && reach.networks.is_empty() {
            return Err(denied(Denial::NotThroughProxy));
        }
        let addresses = asker.look_up(policy, name, async |resolver| resolver.addresses(name).await).await?;
        let mut denial = None;
        for address in addresses {
            match policy.judge_answer(reach, address) {
                Ok(()) => return Ok(names.address_of(name)),
                Err(why) => denial = denial.or(Some(why)),
            }
        }
        Err(denied(denial.unwrap_or(Denial::Private)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_resolver::proto::rr::rdata::{A, CNAME, TXT};
    use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

    use super::*;
    use crate::Resolvers;

    /// A name server on the loopback. `chain.example` is another name of a private host, `moves.example` is public when it
    /// is asked for the first time and private after that.
    fn name_server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let here = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut bytes, mut asked) = ([0; 4096], 0);
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                let query = Message::from_vec(&bytes[..length]).unwrap();
                let question = query.queries[0].clone();
                let mut reply = Message::response(query.metadata.id, OpCode::Query);
                reply.metadata.recursion_available = true;
                reply.add_query(question.clone());
                let name = question.name().to_ascii().to_ascii_lowercase();
                let record = |name: &str, data| Record::from_rdata(Name::from_ascii(name).unwrap(), 0, data);
                let address = |name: &str, ip: [u8; 4]| record(name, RData::A(A(ip.into())));
                match (name.as_str(), question.query_type()) {
                    ("public.example.", RecordType::A) => drop(reply.add_answer(address(&name, [203, 0, 113, 5]))),
                    ("private.example.", RecordType::A) => drop(reply.add_answer(address(&name, [10, 9, 8, 7]))),
                    ("here.example.", RecordType::A) => drop(reply.add_answer(address(&name, [127, 0, 0, 1]))),
                    ("moves.example.", RecordType::A) => {
                        asked += 1;
                        let ip = if asked == 1 { [203, 0, 113, 5] } else { [127, 0, 0, 1] };
                        reply.add_answer(address(&name, ip));
                    }
                    ("chain.example.", RecordType::A) => {
                        let other = Name::from_ascii("private.example.").unwrap();
                        reply.add_answer(record(&name, RData::CNAME(CNAME(other))));
                        reply.add_answer(address("private.example.", [10, 9, 8, 7]));
                    }
                    ("public.example.", RecordType::TXT) => {
                        reply.add_answer(record(&name, RData::TXT(TXT::new(vec!["hello".to_owned()]))));
                    }
                    _ => reply.metadata.response_code = ResponseCode::NXDomain,
                }
                socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
            }
        });
        here
    }

    fn egress(network: Network, networks: &[&str]) -> InstanceEgress {
        let policy = EgressPolicy::public(Resolvers::of_servers(vec![name_server()]));
        let asker = Asker::new(None);
        let networks = networks.iter().map(|rule| rule.parse().unwrap()).collect();
        InstanceEgress::new(
            Arc::new(policy),
            Reach { network, networks, calls: vec!["resize".parse().unwrap()] },
            asker,
        )
    }

    fn listed(rule: &str) -> Network {
        Network::Listed(vec![rule.parse().unwrap()])
    }

    async fn ask(egress: &InstanceEgress, name: &str, kind: RecordType) -> (Message, Option<Refusal>) {
        let mut message = Message::new(9, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let (reply, refusal) = egress.answer(&message.to_vec().unwrap(), true).await;
        (Message::from_vec(&reply).unwrap(), refusal)
    }

    fn address(reply: &Message) -> Option<Ipv4Addr> {
        match reply.answers.first().map(|record| &record.data) {
            Some(RData::A(address)) => Some(address.0),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_name_that_may_be_reached_has_an_address_of_this_instance() {
        let egress = egress(Network::Public, &[]);
        let (reply, refusal) = ask(&egress, "public.example.", RecordType::A).await;
        assert!(address(&reply).is_some_and(is_synthetic) && refusal.is_none(), "{reply:?}");
        let (again, _) = ask(&egress, "PUBLIC.example.", RecordType::A).await;
        assert_eq!(address(&again), address(&reply));
        let (texts, _) = ask(&egress, "public.example.", RecordType::TXT).await;
        assert_eq!(texts.answers.len(), 1);
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
            let (reply, _) = ask(&egress, "public.example.", kind).await;
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
        }
        let (absent, refusal) = ask(&egress, "absent.example.", RecordType::A).await;
        assert_eq!((absent.metadata.response_code, refusal), (ResponseCode::NXDomain, None));
    }

    #[tokio::test]
    async fn what_may_not_be_reached_is_refused_by_name() {
        for (network, networks, name, denial) in [
            (Network::Public, &[][..], "private.example.", Denial::Private),
            (Network::Public, &[], "chain.example.", Denial::Private),
            (Network::Public, &["0.0.0.0/0"], "here.example.", Denial::Own),
            (listed("other.example"), &[], "public.example.", Denial::Unlisted),
            // A look-up of it would tell the world what it is called.
            (listed("10.0.0.0/8"), &["10.0.0.0/8"], "private.example.", Denial::Unlisted),
        ] {
            let (reply, refusal) = ask(&egress(network, networks), name, RecordType::A).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name}");
            assert_eq!(refusal.map(|refusal| refusal.reason), Some(Reason::Denied(denial)), "{name}");
        }
        let (reply, _) = ask(&egress(Network::Public, &["10.0.0.0/8:5432"]), "chain.example.", RecordType::A).await;
        assert!(address(&reply).is_some());
    }

    #[tokio::test]
    async fn a_name_is_judged_again_when_it_is_dialled() {
        let egress = egress(Network::Public, &[]);
        let (reply, _) = ask(&egress, "moves.example.", RecordType::A).await;
        let refusal = egress.dial(SocketAddrV4::new(address(&reply).unwrap(), 80)).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::Denied(Denial::Own));
        assert_eq!(refusal.target, "moves.example:80");
    }

    #[tokio::test]
    async fn what_is_dialled_is_reached_by_the_name_it_stands_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let exact = format!("{here}");
        let egress = egress(Network::Public, &[&exact]);
        let IpAddr::V4(ip) = here.ip() else { panic!("IPv4") };
        let (_, host) = egress.dial(SocketAddrV4::new(ip, here.port())).await.unwrap();
        assert_eq!(host, "127.0.0.1");
        let (reply, refusal) = ask(&egress, "here.example.", RecordType::A).await;
        assert!(refusal.is_none(), "{refusal:?}");
        let (_, host) = egress.dial(SocketAddrV4::new(address(&reply).unwrap(), here.port())).await.unwrap();
        assert_eq!(host, "here.example");
        let unknown = egress.dial(SocketAddrV4::new([198, 19, 0, 9].into(), 80)).await.unwrap_err();
        assert_eq!(unknown.reason, Reason::NoSuchName);
    }

    #[tokio::test]
    async fn another_function_has_a_name_where_it_may_be_called() {
        let egress = egress(Network::None, &[]);
        let (reply, refusal) = ask(&egress, "Resize.faena.internal.", RecordType::A).await;
        assert!(refusal.is_none());
        let here = address(&reply).unwrap();
        let (destination, host) = egress.dial(SocketAddrV4::new(here, 80)).await.unwrap();
        assert!(matches!(destination, Destination::Function(name) if name.as_str() == "resize"));
        assert_eq!(host, "resize.faena.internal");
        assert!(egress.dial(SocketAddrV4::new(here, 443)).await.is_err());
        for name in ["other.faena.internal.", "a.resize.faena.internal."] {
            let (reply, refusal) = ask(&egress, name, RecordType::A).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
            assert_eq!(refusal.map(|refusal| refusal.reason), Some(Reason::Denied(Denial::Uncalled)));
        }
        // It reaches nothing else.
        let (reply, _) = ask(&egress, "public.example.", RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    }
}
