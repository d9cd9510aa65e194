package netfilter

import (
	"errors"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Flow is a connection, or what connection tracking takes for one: datagrams
// between the same two ends, with no pause longer than its timeout.
type Flow struct {
	ID       uint32
	Proto    uint8          // unix.IPPROTO_TCP or UDP
	From, To netip.AddrPort // as its first packet had them
	Mark     uint32
	Status   uint32 // bits of enum ip_conntrack_status
	State    State  // of TCP
	In, Out  Count  // with the first packet's direction, and against it
	// Start and Stop are zero where the kernel does not tell them: the end alone
	// has both, a listed flow the first.
	Start, Stop time.Time
	Over        bool // the kernel has forgotten it
}

// Count is what went in one direction. Bytes are those of IP packets, headers
// included.
type Count struct{ Packets, Bytes uint64 }

// State is how far a TCP connection is (enum tcp_conntrack).
type State uint8

// States of TCP.
const (
	SynSent State = iota + 1
	SynReceived
	Established
	FinWait
	CloseWait
	LastAck
	TimeWait
	Closed
)

// Open tells whether both ends have agreed to speak, and not both to end.
func (s State) Open() bool { return s >= Established && s <= LastAck }

// Done tells whether the connection is over, although the kernel remembers it.
func (s State) Done() bool { return s == TimeWait || s == Closed }

// Answered tells whether there was ever an answer that belongs to the flow. A
// reset in answer to the first packet is counted, and is none.
func (f *Flow) Answered() bool { return f.Status&statusSeenReply != 0 }

// Agreed tells whether a TCP connection has ever been open.
func (f *Flow) Agreed() bool { return f.Status&statusAssured != 0 || f.State.Open() }

// Bits of Flow.Status.
const (
	statusSeenReply = 1 << 1
	statusAssured   = 1 << 2
)

// Attributes of a flow (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctTupleOrig     = 1
	ctStatus        = 3
	ctProtoInfo     = 4
	ctMark          = 8
	ctCountersOrig  = 9
	ctCountersReply = 10
	ctID            = 12
	ctTimestamp     = 20
	ctMarkMask      = 21

	ctTupleIP    = 1
	ctTupleProto = 2
	ctSrc4       = 1
	ctDst4       = 2
	ctSrc6       = 3
	ctDst6       = 4
	ctProtoNum   = 1
	ctProtoSrc   = 2
	ctProtoDst   = 3

	ctProtoInfoTCP = 1
	ctTCPState     = 1
	ctPackets      = 1
	ctBytes        = 2
	ctStart        = 1
	ctStop         = 2
)

// nfgenSize is that of struct nfgenmsg (linux/netfilter/nfnetlink.h).
const nfgenSize = 4

// errShort is said of a message that no kernel sends.
var errShort = errors.New("it is cut short")

// attributes reads what follows a message's struct nfgenmsg.
func attributes(data []byte) (*netlink.AttributeDecoder, error) {
	if len(data) < nfgenSize {
		return nil, errShort
	}
	ad, err := netlink.NewAttributeDecoder(data[nfgenSize:])
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = networkOrder
	return ad, nil
}

// parseFlow reads a message about a flow.
func parseFlow(data []byte) (f Flow, err error) {
	ad, err := attributes(data)
	if err != nil {
		return f, err
	}
	for ad.Next() {
		switch ad.Type() {
		case ctTupleOrig:
			ad.Nested(f.parseTuple)
		case ctStatus:
			f.Status = ad.Uint32()
		case ctProtoInfo:
			ad.Nested(f.parseProtoInfo)
		case ctMark:
			f.Mark = ad.Uint32()
		case ctCountersOrig:
			ad.Nested(f.In.parse)
		case ctCountersReply:
			ad.Nested(f.Out.parse)
		case ctID:
			f.ID = ad.Uint32()
		case ctTimestamp:
			ad.Nested(f.parseTimes)
		}
	}
	if err := ad.Err(); err != nil {
		return f, err
	}
	if !f.From.IsValid() || !f.To.IsValid() {
		return f, errors.New("it has no addresses")
	}
	return f, nil
}

func (f *Flow) parseTuple(ad *netlink.AttributeDecoder) error {
	var src, dst netip.Addr
	var from, to uint16
	for ad.Next() {
		switch ad.Type() {
		case ctTupleIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case ctSrc4, ctSrc6:
						src, _ = netip.AddrFromSlice(ad.Bytes())
					case ctDst4, ctDst6:
						dst, _ = netip.AddrFromSlice(ad.Bytes())
					}
				}
				return ad.Err()
			})
		case ctTupleProto:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case ctProtoNum:
						f.Proto = ad.Uint8()
					case ctProtoSrc:
						from = ad.Uint16()
					case ctProtoDst:
						to = ad.Uint16()
					}
				}
				return ad.Err()
			})
		}
	}
	f.From, f.To = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
	return ad.Err()
}

func (f *Flow) parseProtoInfo(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == ctProtoInfoTCP {
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == ctTCPState {
						f.State = State(ad.Uint8())
					}
				}
				return ad.Err()
			})
		}
	}
	return ad.Err()
}

func (c *Count) parse(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case ctPackets:
			c.Packets = ad.Uint64()
		case ctBytes:
			c.Bytes = ad.Uint64()
		}
	}
	return ad.Err()
}

// parseTimes reads nanoseconds since 1970.
func (f *Flow) parseTimes(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case ctStart:
			f.Start = time.Unix(0, int64(ad.Uint64()))
		case ctStop:
			f.Stop = time.Unix(0, int64(ad.Uint64()))
		}
	}
	return ad.Err()
}

// name is the message that names the flow alone: by its ends and by its number,
// so that no later one between the same ends is meant.
func (f *Flow) name() ([]byte, error) {
	family, src, dst := uint8(unix.AF_INET), uint16(ctSrc4), uint16(ctDst4)
	if f.From.Addr().Is6() {
		family, src, dst = unix.AF_INET6, ctSrc6, ctDst6
	}
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = networkOrder
	ae.Nested(ctTupleOrig, func(ae *netlink.AttributeEncoder) error {
		ae.Nested(ctTupleIP, func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(src, f.From.Addr().AsSlice())
			ae.Bytes(dst, f.To.Addr().AsSlice())
			return nil
		})
		ae.Nested(ctTupleProto, func(ae *netlink.AttributeEncoder) error {
			ae.Uint8(ctProtoNum, f.Proto)
			ae.Uint16(ctProtoSrc, f.From.Port())
			ae.Uint16(ctProtoDst, f.To.Port())
			return nil
		})
		return nil
	})
	ae.Uint32(ctID, f.ID)
	b, err := ae.Encode()
	return append([]byte{family, unix.NFNETLINK_V0, 0, 0}, b...), err
}
