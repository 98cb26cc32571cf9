//! Packets of an instance, taken apart as far as is needed, and those that are made in reply to what no connection answers.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket,
    TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

/// What a header without options takes (RFC 791, 3.1).
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// How many hops a packet of ours may take; it takes none.
const HOP_LIMIT: u8 = 64;
/// How much of a refused packet an ICMP error quotes beyond its header (RFC 792).
const QUOTED: usize = 8;

/// Both ends of a connection or a datagram of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    /// The instance's port.
    pub(crate) port: u16,
    /// The destination.
    pub(crate) target: SocketAddrV4,
}

/// A packet that may be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    /// A segment.
    Tcp { ends: Ends, flags: Flags },
    /// A datagram.
    Udp { ends: Ends, payload: &'a [u8] },
}

/// What has to be known of a segment before it reaches a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) syn: bool,
    pub(crate) ack: bool,
    pub(crate) rst: bool,
}

impl Flags {
    /// Whether it asks for a connection.
    pub(crate) fn opens(self) -> bool {
        self.syn && !self.ack && !self.rst
    }
}

/// The parts of a segment that its reset needs.
struct Segment<'a> {
    header: Ipv4Packet<&'a [u8]>,
    segment: TcpPacket<&'a [u8]>,
}

/// A header that is answered at all: IPv4 without options, no fragment, from the instance's own address to one host.
fn header(bytes: &[u8], own: Ipv4Addr) -> Option<Ipv4Packet<&[u8]>> {
    let header = Ipv4Packet::new_checked(bytes).ok()?;
    let is_plain = header.version() == 4
        && usize::from(header.header_len()) == IPV4_HEADER
        && usize::from(header.total_len()) == bytes.len()
        && !header.more_frags()
        && header.frag_offset() == 0;
    let to = header.dst_addr();
    let is_one_host = !to.is_multicast() && !to.is_broadcast() && !to.is_unspecified() && to != own;
    (is_plain && is_one_host && header.src_addr() == own).then_some(header)
}

fn segment(bytes: &[u8], own: Ipv4Addr) -> Option<Segment<'_>> {
    let header = header(bytes, own)?;
    let segment = TcpPacket::new_checked(&bytes[IPV4_HEADER..]).ok()?;
    (header.next_header() == IpProtocol::Tcp).then_some(Segment { header, segment })
}

impl<'a> Packet<'a> {
    /// Takes a packet of an instance apart; `own` is the address that it was given. None for what is dropped.
    pub(crate) fn parse(bytes: &'a [u8], own: Ipv4Addr) -> Option<Self> {
        let header = header(bytes, own)?;
        let ends = |port, to| Ends { port, target: SocketAddrV4::new(header.dst_addr(), to) };
        match header.next_header() {
            IpProtocol::Tcp => {
                let tcp = segment(bytes, own)?.segment;
                let flags = Flags { syn: tcp.syn(), ack: tcp.ack(), rst: tcp.rst() };
                let has_ports = tcp.src_port() != 0 && tcp.dst_port() != 0;
                has_ports.then(|| Self::Tcp { ends: ends(tcp.src_port(), tcp.dst_port()), flags })
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(&bytes[IPV4_HEADER..]).ok()?;
                let has_ports = udp.src_port() != 0 && udp.dst_port() != 0;
                let length = usize::from(udp.len()).checked_sub(UDP_HEADER)?;
                let payload = bytes[IPV4_HEADER + UDP_HEADER..].get(..length)?;
                has_ports.then(|| Self::Udp { ends: ends(udp.src_port(), udp.dst_port()), payload })
            }
            _ => None,
        }
    }
}

/// A packet with this header; `emit` writes what follows it.
fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, length: usize, emit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let repr =
        Ipv4Repr { src_addr: from, dst_addr: to, next_header: protocol, payload_len: length, hop_limit: HOP_LIMIT };
    let mut bytes = vec![0; IPV4_HEADER + length];
    repr.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    emit(&mut bytes[IPV4_HEADER..]);
    bytes
}

/// The reset that answers a segment of an instance (RFC 9293, 3.10.7.1); none where it is a reset itself.
pub(crate) fn reset(bytes: &[u8], own: Ipv4Addr) -> Option<Vec<u8>> {
    let Segment { header, segment } = segment(bytes, own)?;
    if segment.rst() {
        return None;
    }
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        (Default::default(), Some(segment.seq_number() + segment.segment_len()))
    };
    let peer = SocketAddrV4::new(header.dst_addr(), segment.dst_port());
    let own = SocketAddrV4::new(header.src_addr(), segment.src_port());
    Some(empty_segment((peer, own), TcpControl::Rst, seq_number, ack_number))
}

/// A segment of a peer that makes the kernel of an instance tell its sequence numbers, if it has such a connection: a SYN is
/// answered by an acknowledgement in every synchronised state (RFC 5961, 4.2). The reset that answers that is believed.
pub(crate) fn probe(ends: Ends, own: Ipv4Addr) -> Vec<u8> {
    let to = SocketAddrV4::new(own, ends.port);
    empty_segment((ends.target, to), TcpControl::Syn, TcpSeqNumber::default(), None)
}

fn empty_segment(
    (from, to): (SocketAddrV4, SocketAddrV4),
    control: TcpControl,
    seq_number: TcpSeqNumber,
    ack_number: Option<TcpSeqNumber>,
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    packet(*from.ip(), *to.ip(), IpProtocol::Tcp, repr.buffer_len(), |bytes| {
        let (from, to) = (IpAddress::from(*from.ip()), IpAddress::from(*to.ip()));
        repr.emit(&mut TcpPacket::new_unchecked(bytes), &from, &to, &ChecksumCapabilities::default());
    })
}

/// Why a destination is not reached, as ICMP says it (RFC 792, RFC 1812).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// Nothing listens there.
    Port,
    /// There is no route, or no answer.
    Host,
}

/// The ICMP error that answers a packet of an instance.
pub(crate) fn unreachable(bytes: &[u8], own: Ipv4Addr, why: Unreachable) -> Option<Vec<u8>> {
    let refused = header(bytes, own)?;
    let quoted = &bytes[IPV4_HEADER..bytes.len().min(IPV4_HEADER + QUOTED)];
    let header = Ipv4Repr {
        src_addr: refused.src_addr(),
        dst_addr: refused.dst_addr(),
        next_header: refused.next_header(),
        // Of the packet that is quoted.
        payload_len: bytes.len() - IPV4_HEADER,
        hop_limit: refused.hop_limit(),
    };
    let reason = match why {
        Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
        Unreachable::Host => Icmpv4DstUnreachable::HostUnreachable,
    };
    let repr = Icmpv4Repr::DstUnreachable { reason, header, data: quoted };
    let (from, to) = (refused.dst_addr(), refused.src_addr());
    Some(packet(from, to, IpProtocol::Icmp, repr.buffer_len(), |bytes| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    }))
}

/// A datagram to an instance, which answers one of its own.
pub(crate) fn datagram(ends: Ends, own: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: ends.target.port(), dst_port: ends.port };
    let (from, to) = (*ends.target.ip(), own);
    packet(from, to, IpProtocol::Udp, UDP_HEADER + payload.len(), |bytes| {
        let mut datagram = UdpPacket::new_unchecked(bytes);
        let (from, to) = (IpAddress::from(from), IpAddress::from(to));
        let write = |place: &mut [u8]| place.copy_from_slice(payload);
        repr.emit(&mut datagram, &from, &to, payload.len(), write, &ChecksumCapabilities::default());
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    const THERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 5), 5432);

    fn syn() -> Vec<u8> {
        syn_of(Ends { port: 40000, target: THERE })
    }

    pub(crate) fn syn_of(ends: Ends) -> Vec<u8> {
        let repr = TcpRepr {
            src_port: ends.port,
            dst_port: ends.target.port(),
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(7),
            ack_number: None,
            window_len: 1000,
            window_scale: Some(7),
            max_seg_size: Some(1460),
            sack_permitted: true,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let (from, to) = (IpAddress::from(OWN), IpAddress::from(*ends.target.ip()));
        packet(OWN, *ends.target.ip(), IpProtocol::Tcp, repr.buffer_len(), |bytes| {
            repr.emit(&mut TcpPacket::new_unchecked(bytes), &from, &to, &ChecksumCapabilities::default());
        })
    }

    fn ends() -> Ends {
        Ends { port: 40000, target: THERE }
    }

    #[test]
    fn a_request_for_a_connection_is_recognised_and_refused() {
        let syn = syn();
        let Some(Packet::Tcp { ends: found, flags }) = Packet::parse(&syn, OWN) else { panic!("a segment") };
        assert!(found == ends() && flags.opens());
        let reset = reset(&syn, OWN).unwrap();
        let header = Ipv4Packet::new_checked(&reset[..]).unwrap();
        assert!(header.verify_checksum());
        assert_eq!((header.src_addr(), header.dst_addr()), (*THERE.ip(), OWN));
        let segment = TcpPacket::new_checked(&reset[20..]).unwrap();
        assert!(segment.rst() && segment.ack() && segment.ack_number() == TcpSeqNumber(8));
        assert!(segment.verify_checksum(&(*THERE.ip()).into(), &OWN.into()));
        let error = unreachable(&syn, OWN, Unreachable::Host).unwrap();
        let icmp = Icmpv4Packet::new_checked(&error[20..]).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!(&error[28..48][12..20], &syn[12..20], "it quotes the addresses");
    }

    #[test]
    fn a_probe_comes_from_the_peer() {
        let probe = probe(ends(), OWN);
        let header = Ipv4Packet::new_checked(&probe[..]).unwrap();
        assert!(header.verify_checksum());
        assert_eq!((header.src_addr(), header.dst_addr()), (*THERE.ip(), OWN));
        let segment = TcpPacket::new_checked(&probe[20..]).unwrap();
        assert!(segment.syn() && !segment.ack() && segment.verify_checksum(&(*THERE.ip()).into(), &OWN.into()));
        assert_eq!((segment.src_port(), segment.dst_port()), (THERE.port(), 40000));
    }

    #[test]
    fn a_reset_is_not_answered() {
        let mut bytes = syn();
        // The flags lie in the fourteenth byte of a segment (RFC 9293, 3.1).
        bytes[20 + 13] = 0x04;
        assert_eq!(reset(&bytes, OWN), None);
    }

    #[test]
    fn what_is_no_plain_packet_of_the_instance_is_dropped() {
        let plain = syn();
        let with = |at: usize, byte: u8| {
            let mut changed = plain.clone();
            changed[at] = byte;
            changed
        };
        let hostile = [
            ("IPv6", with(0, 0x65)),
            ("options", with(0, 0x46)),
            ("a longer total length", with(3, plain[3] + 1)),
            ("a shorter total length", with(3, plain[3] - 1)),
            ("more fragments", with(6, 0x20)),
            ("an offset", with(7, 1)),
            ("another protocol", with(9, 132)),
            ("another source", with(15, 9)),
            ("multicast", with(16, 224)),
            ("broadcast", [&plain[..16], &[255; 4], &plain[20..]].concat()),
            ("itself", [&plain[..16], &OWN.octets(), &plain[20..]].concat()),
            ("a short segment", plain[..30].to_vec()),
            ("port 0", [&plain[..22], &[0; 2], &plain[24..]].concat()),
            ("nothing", Vec::new()),
        ];
        for (what, bytes) in hostile {
            assert_eq!(Packet::parse(&bytes, OWN), None, "{what}");
            assert_eq!(reset(&bytes, OWN).filter(|_| what != "port 0"), None, "{what}");
        }
    }

    #[test]
    fn a_datagram_is_read_as_it_was_written() {
        let bytes = datagram(Ends { port: 53, target: SocketAddrV4::new(OWN, 40000) }, *THERE.ip(), b"hello");
        let Some(Packet::Udp { ends, payload }) = Packet::parse(&bytes, OWN) else { panic!("a datagram") };
        assert_eq!((ends.port, ends.target.port(), payload), (40000, 53, &b"hello"[..]));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(17);
        let plain = syn();
        for _ in 0..200_000 {
            let mut bytes = plain.clone();
            for _ in 0..random.usize(0..6) {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(0..=bytes.len()));
            let _ = Packet::parse(&bytes, OWN);
            let _ = reset(&bytes, OWN);
            let _ = unreachable(&bytes, OWN, Unreachable::Port);
        }
    }
}
