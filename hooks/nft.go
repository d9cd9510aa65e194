package hooks

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/limits"
	"nemoclaw/egress/netfilter"
)

// tableName is the one nftables table of ours, in either namespace.
const tableName = "nemoclaw"

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
}

// A chain is a base chain with its rules, in order.
type chain struct {
	name   string
	kind   nftables.ChainType
	hook   *nftables.ChainHook
	prio   nftables.ChainPriority
	policy nftables.ChainPolicy
	rules  []words
	// anyRules tells compare to leave the rules alone.
	anyRules bool
}

// words are a rule's expressions; a sentence is put together from several.
type words []expr.Any

// rule appends a rule made of parts.
func (c *chain) rule(parts ...words) { c.rules = append(c.rules, slices.Concat(parts...)) }

// load queues chains, with their rules.
func load(c *batch, t *nftables.Table, chains []chain) {
	for _, ch := range chains {
		kc := c.AddChain(&nftables.Chain{Name: ch.name, Table: t, Type: ch.kind, Hooknum: ch.hook, Priority: &ch.prio, Policy: &ch.policy})
		for _, exprs := range ch.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: kc, Exprs: exprs})
		}
	}
}

// compare says how the kernel's table differs from chains: a table that sleeps,
// a chain that is missing, one too many, hooked elsewhere, of another policy, or
// with other rules.
func compare(c *nftables.Conn, chains []chain) error {
	kept, err := c.ListTableOfFamily(tableName, nftables.TableFamilyINet)
	if errors.Is(err, unix.ENOENT) {
		return errors.New("the fence's table is missing")
	}
	if err != nil {
		return fmt.Errorf("cannot find the fence's table: %w", err)
	}
	if kept.Flags != 0 { // NFT_TABLE_F_DORMANT; we set none
		return errors.New("the fence's table sleeps")
	}
	have, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("cannot list the fence's chains: %w", err)
	}
	have = slices.DeleteFunc(have, func(k *nftables.Chain) bool { return k.Table.Name != tableName })
	for _, k := range have {
		if !slices.ContainsFunc(chains, func(want chain) bool { return want.name == k.Name }) {
			return fmt.Errorf("the fence has a chain %s that is none of its own", k.Name)
		}
	}
	for _, want := range chains {
		i := slices.IndexFunc(have, func(k *nftables.Chain) bool { return k.Name == want.name })
		if i < 0 {
			return fmt.Errorf("the fence's chain %s is missing", want.name)
		}
		if err := want.compare(c, have[i]); err != nil {
			return err
		}
	}
	return nil
}

func (want *chain) compare(c *nftables.Conn, k *nftables.Chain) error {
	if k.Hooknum == nil || *k.Hooknum != *want.hook || k.Priority == nil || *k.Priority != want.prio || k.Type != want.kind {
		return fmt.Errorf("the fence's chain %s is not where it was put", want.name)
	}
	if k.Policy == nil || *k.Policy != want.policy {
		return fmt.Errorf("the fence's chain %s has another policy", want.name)
	}
	if want.anyRules {
		return nil
	}
	rules, err := c.GetRules(table(), k)
	if err != nil {
		return fmt.Errorf("cannot list the rules of the fence's chain %s: %w", want.name, err)
	}
	if len(rules) != len(want.rules) {
		return fmt.Errorf("the fence's chain %s has %d rules and not %d", want.name, len(rules), len(want.rules))
	}
	for i, r := range rules {
		if !slices.EqualFunc(r.Exprs, readable(want.rules[i]), sameExpr) {
			return fmt.Errorf("rule %d of the fence's chain %s is another one", i+1, want.name)
		}
	}
	return nil
}

// readable leaves out what the library writes and does not read back. So where
// tproxy leads to is not compared, only what it is done to: another listener of
// the same namespace leads no further.
func readable(w words) words {
	return slices.DeleteFunc(slices.Clone(w), func(e expr.Any) bool {
		_, lost := e.(*expr.TProxy)
		return lost
	})
}

// sameExpr compares an expression as the kernel tells it with the one that was
// loaded: the kernel counts, knows a set by its name, and writes one register
// as a range of one.
func sameExpr(kernel, ours expr.Any) bool {
	switch k := kernel.(type) {
	case *expr.Counter:
		_, same := ours.(*expr.Counter)
		return same
	case *expr.Lookup:
		o, same := ours.(*expr.Lookup)
		return same && k.SetName == o.SetName && k.SourceRegister == o.SourceRegister && k.Invert == o.Invert
	case *expr.NAT:
		o, same := ours.(*expr.NAT)
		return same && k.Type == o.Type && k.Family == o.Family && k.RegAddrMin == o.RegAddrMin && k.RegProtoMin == o.RegProtoMin
	}
	return reflect.DeepEqual(kernel, ours)
}

// The sets of the inner table: what the container answers for itself, and the
// indexes of the stand-ins.
func own4Set() *nftables.Set {
	return &nftables.Set{Table: table(), Name: "own4", ID: 1, KeyType: nftables.TypeIPAddr, Interval: true}
}

func own6Set() *nftables.Set {
	return &nftables.Set{Table: table(), Name: "own6", ID: 2, KeyType: nftables.TypeIP6Addr}
}

func linksSet() *nftables.Set {
	return &nftables.Set{Table: table(), Name: "links", ID: 3, KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian}
}

// own are the addresses of the inner namespace that are not steered away:
// loopback, the sandbox's own and those of the stand-ins.
func own(standins []netip.Addr) (v4, v6 []nftables.SetElement) {
	addrs := append([]netip.Addr{self4, self6, netip.IPv6Loopback()}, standins...)
	slices.SortFunc(addrs, netip.Addr.Compare)
	v4 = interval(netip.MustParseAddr("127.0.0.0"), netip.MustParseAddr("128.0.0.0"))
	for _, a := range slices.Compact(addrs) {
		if a.Is4() {
			v4 = append(v4, interval(a, a.Next())...)
		} else {
			v6 = append(v6, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	return v4, v6
}

// interval is the addresses from first up to, and without, end.
func interval(first, end netip.Addr) []nftables.SetElement {
	return []nftables.SetElement{{Key: first.AsSlice()}, {Key: end.AsSlice(), IntervalEnd: true}}
}

// innerChains are the fence. Steering routes (Seal) bring every packet that a
// program sends back in over lo; here it is turned to a listener or refused,
// and whatever would leave by another interface is refused, or dropped.
// Without v6 the kernel has no IPv6: its packets are dropped should it get it.
func innerChains(v6 bool) []chain {
	own4, own6, links := own4Set(), own6Set(), linksSet()
	onLinks := func(k expr.MetaKey) words {
		return words{&expr.Meta{Key: k, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: links.Name, SetID: links.ID}}
	}
	resolver := EngineResolver // it asks from the host

	// No connection tracking for what is steered: its answer would be all that
	// it is tracked for. Loopback is spared, where Docker's NAT may need it.
	raw := chain{name: "raw_out", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, prio: *nftables.ChainPriorityRaw, policy: nftables.ChainPolicyAccept}
	raw.rule(toLo, tcp, ipv4, inLoopback(daddr4, expr.CmpOpNeq), inLoopback(saddr4, expr.CmpOpNeq), notrack)

	steer := chain{name: "steer", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, prio: *nftables.ChainPriorityMangle, policy: nftables.ChainPolicyAccept}
	steer.rule(notFromLo, back)
	steer.rule(to(resolver), marked(Mark), back)
	steer.rule(toSet(own4, false), back)
	if v6 {
		steer.rule(toSet(own6, false), back)
	}
	steer.rule(to(gate4), tcp, dport(dnsPort), back)
	steer.rule(ipv4, tcp, tproxy(gate4, tcpPort), accept)
	if v6 {
		steer.rule(to(gate6), tcp, dport(dnsPort), back)
		steer.rule(ipv6, tcp, tproxy(gate6, tcpPort), accept)
	}
	// Without a listener tproxy does not match: a dead gateway refuses at once.
	steer.rule(tcp, opening, reset)

	// A question to any resolver is answered by ours. The mark lets the
	// gateway's own sockets through to the engine's resolver.
	dns := chain{name: "dns", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, prio: *nftables.ChainPriorityMangle, policy: nftables.ChainPolicyAccept}
	dns.rule(marked(Mark), accept)
	dns.rule(to(resolver), tcp, dport(dnsPort), dnat(gate4, dnsPort))
	dns.rule(to(resolver), udp, dport(dnsPort), dnat(gate4, dnsPort))
	dns.rule(toSet(own4, true), udp, dport(dnsPort), dnat(gate4, dnsPort))

	out := chain{name: "out", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, prio: *nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop}
	in := chain{name: "in", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, prio: *nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop}
	if v6 {
		raw.rule(toLo, tcp, notTo(netip.IPv6Loopback()), notrack)
		dns.rule(toSet(own6, true), udp, dport(dnsPort), dnat(gate6, dnsPort))
	} else {
		out.rule(ipv6, drop)
		in.rule(ipv6, drop)
	}

	// Nearly all packets are of connections that stand: nothing below is about them.
	out.rule(toLo, tcp, later, notTo(resolver), accept)
	out.rule(toLo, tcp, later, ipv6, accept)
	// Every address is one of this machine's (steer), so that a program could speak
	// in the name of a server, or of the gateway; of IPv6 it needs not even that
	// (ipv6(7), IPV6_FREEBIND). To connection tracking the question to that server
	// would then be an answer, and pass. The gateway's address is also that of
	// whoever asks it there.
	forged := []words{slices.Concat(toLo, fromSet(own4, true), notFrom(gate4)), slices.Concat(toLo, from(resolver))}
	answers := []words{slices.Concat(toLo, from(gate4))}
	if v6 {
		forged = append(forged, slices.Concat(toLo, fromSet(own6, true), notFrom(gate6)))
		answers = append(answers, slices.Concat(toLo, from(gate6)))
	}
	for _, f := range forged {
		out.rule(f, udp, told, drop)
		out.rule(f, tcp, opening, told, reset)
	}
	for _, a := range answers {
		out.rule(a, udp, sport(dnsPort), unmarked(answerMark), told, drop)
	}
	out.rule(onLinks(expr.MetaKeyOIF), reply, established, accept)
	out.rule(onLinks(expr.MetaKeyOIF), reply, related, icmp, accept)
	out.rule(onLinks(expr.MetaKeyOIF), reply, related, icmp6, accept)
	// What a program sends is told to the gateway (refused); what the kernel says
	// by itself on a link, as multicast listeners do, is not.
	out.rule(notToLo, tcp, opening, told)
	out.rule(notToLo, tcp, reset)
	out.rule(notToLo, udp, told)
	out.rule(notToLo, prohibited)
	out.rule(to(resolver), unmarked(Mark), told, unreachable)
	out.rule(accept)

	// UDP is refused here and not in out: a program then sees ECONNREFUSED and
	// not EPERM.
	in.rule(fromLo, to(resolver), unmarked(Mark), drop) // it may have come there by a route of its own (RFC 791, 3.1)
	in.rule(fromLo, tcp, accept)
	in.rule(fromLo, reply, accept)
	in.rule(fromLo, toSet(own4, false), accept)
	in.rule(fromLo, to(gate4), accept)
	if v6 {
		in.rule(fromLo, toSet(own6, false), accept)
		in.rule(fromLo, to(gate6), accept)
	}
	in.rule(fromLo, udp, told, unreachable)
	in.rule(fromLo, told, prohibited)
	in.rule(onLinks(expr.MetaKeyIIF), tcp, accept)
	in.rule(onLinks(expr.MetaKeyIIF), udp, accept)
	in.rule(onLinks(expr.MetaKeyIIF), related, icmp, accept)
	in.rule(onLinks(expr.MetaKeyIIF), related, icmp6, accept)

	forward := chain{name: "forw", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, prio: *nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop}
	return []chain{raw, steer, dns, out, in, forward}
}

// portsSet are the ports of an uplink that whoever comes may knock at.
func portsSet() *nftables.Set {
	return &nftables.Set{Table: table(), Name: "ports", ID: 1, KeyType: nftables.TypeInetService, Interval: true}
}

// ingressPorts are the elements of portsSet for ingress "80,8000-8100"; none
// for "all" and "none".
func ingressPorts(ingress string) (elements []nftables.SetElement, err error) {
	if ingress == "all" || ingress == "none" {
		return nil, nil
	}
	for part := range strings.SplitSeq(ingress, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		first, ferr := strconv.ParseUint(low, 10, 16)
		last, lerr := strconv.ParseUint(high, 10, 16)
		if ferr != nil || lerr != nil || first == 0 || first > last {
			return nil, fmt.Errorf("cannot read ingress %q: it is \"all\", \"none\" or ports such as \"80,8000-8100\"", ingress)
		}
		elements = append(elements, nftables.SetElement{Key: port(uint16(first))})
		if last < 65535 { // the end of the last interval is that of all ports
			elements = append(elements, nftables.SetElement{Key: port(uint16(last + 1)), IntervalEnd: true})
		}
	}
	return elements, nil
}

// knocks matches a connection to a port that ingress admits; nil: to none.
func knocks(ingress string) words {
	switch ingress {
	case "none":
		return nil
	case "all":
		return words{}
	}
	s := portsSet()
	return words{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

// uplinkChains pass inbound flows on to the stand-ins and their replies back,
// and nothing else between the two. A flow that ingress does not admit is not
// marked, so it ends in this namespace, where nothing listens for it.
func uplinkChains(links []plugged, ingress string) []chain {
	fromOuter, toOuter := named(expr.MetaKeyIIFNAME, expr.CmpOpEq, outerPrefix), named(expr.MetaKeyOIFNAME, expr.CmpOpEq, outerPrefix)
	notFromOuter := named(expr.MetaKeyIIFNAME, expr.CmpOpNeq, outerPrefix)

	// The kernel clears a packet's mark between namespaces; the connection's
	// is ours alone to set.
	pre := chain{name: "pre", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, prio: *nftables.ChainPriorityMangle, policy: nftables.ChainPolicyAccept}
	post := chain{name: "post", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, prio: *nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept}
	for _, l := range links {
		from := words{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, is(expr.CmpOpEq, ifname(l.name))}
		if admitted := knocks(ingress); admitted != nil {
			// TCP is told of at each change of its state, UDP at its first packet.
			pre.rule(from, tcp, admitted, fresh, toUs, setConnMark(l.mark()), setEvents(eventProtoInfo|eventDestroy))
			pre.rule(from, udp, admitted, fresh, toUs, setConnMark(l.mark()), setEvents(eventNew|eventDestroy))
			pre.rule(from, connMarked(expr.CmpOpEq, l.mark()), original, setMark(l.mark()))
		}
		// An address of our own, so that the inner namespace needs no route out
		// to answer, and never masquerade: for IPv6 that picks the container's
		// own address, to which nothing can be answered.
		onto := words{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, is(expr.CmpOpEq, ifname(l.outer()))}
		post.rule(ipv4, onto, from, snat(l.caller4()))
		post.rule(ipv6, onto, from, snat(l.caller6()))
	}

	forward := chain{name: "forw", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, prio: *nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop}
	forward.rule(fromOuter, connMarked(expr.CmpOpNeq, 0), reply, established, accept)
	forward.rule(fromOuter, connMarked(expr.CmpOpNeq, 0), reply, related, icmp, accept)
	forward.rule(fromOuter, connMarked(expr.CmpOpNeq, 0), reply, related, icmp6, accept)
	forward.rule(notFromOuter, toOuter, connMarked(expr.CmpOpNeq, 0), original, accept)

	in := chain{name: "in", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, prio: *nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop}
	in.rule(fromOuter, count, drop)
	in.rule(fromLo, accept)
	in.rule(established, accept)
	in.rule(related, accept)
	in.rule(icmp, icmpType(8), accept) // echo request
	for _, kind := range []byte{128, 134, 135, 136} {
		in.rule(icmp6, icmpType(kind), accept) // echo request; router and neighbour discovery
	}
	in.rule(tcp, opening, toUs, counted, seldom, logged)
	in.rule(udp, toUs, counted, seldom, logged)
	in.rule(tcp, reset)
	in.rule(udp, unreachable)

	out := chain{name: "out", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, prio: *nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept}
	out.rule(toOuter, drop)
	return []chain{pre, post, forward, in, out}
}

// The vocabulary. Register 1 holds what is looked at.

// Bits of a connection's event mask (enum ip_conntrack_events): what the kernel
// tells of it on netlink.
const (
	eventNew       = 1 << 0
	eventDestroy   = 1 << 2
	eventProtoInfo = 1 << 5
)

// refusedCounter counts what the uplink refused from outside.
const refusedCounter = "refused"

// An addressField is where an address stands in the IP header.
type addressField struct {
	family      byte
	offset, len uint32
}

var (
	saddr4 = addressField{unix.NFPROTO_IPV4, 12, 4}
	daddr4 = addressField{unix.NFPROTO_IPV4, 16, 4}
	saddr6 = addressField{unix.NFPROTO_IPV6, 8, 16}
	daddr6 = addressField{unix.NFPROTO_IPV6, 24, 16}
)

func saddrOf(a netip.Addr) addressField {
	if a.Is4() {
		return saddr4
	}
	return saddr6
}

func (f addressField) load(n uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: n}
}

func daddrOf(a netip.Addr) addressField {
	if a.Is4() {
		return daddr4
	}
	return daddr6
}

func is(op expr.CmpOp, value []byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: value} }

func meta(k expr.MetaKey, op expr.CmpOp, value ...byte) words {
	return words{&expr.Meta{Key: k, Register: 1}, is(op, value)}
}

func conn(k expr.CtKey, op expr.CmpOp, value ...byte) words {
	return words{&expr.Ct{Key: k, Register: 1}, is(op, value)}
}

// state matches if the connection is in one of the states of bits.
func state(bits uint32) words {
	return words{&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bits), Xor: native(0)},
		is(expr.CmpOpNeq, native(0))}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }
func port(v uint16) []byte   { return binaryutil.BigEndian.PutUint16(v) }

// ifname is name as the kernel compares it whole: padded to IFNAMSIZ.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// named matches the beginning of an interface's name.
func named(k expr.MetaKey, op expr.CmpOp, prefix string) words { return meta(k, op, []byte(prefix)...) }

var (
	// lo has index 1 in every namespace (LOOPBACK_IFINDEX in the kernel).
	fromLo    = meta(expr.MetaKeyIIF, expr.CmpOpEq, native(1)...)
	notFromLo = meta(expr.MetaKeyIIF, expr.CmpOpNeq, native(1)...)
	toLo      = meta(expr.MetaKeyOIF, expr.CmpOpEq, native(1)...)
	notToLo   = meta(expr.MetaKeyOIF, expr.CmpOpNeq, native(1)...)

	ipv4  = meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, unix.NFPROTO_IPV4)
	ipv6  = meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, unix.NFPROTO_IPV6)
	tcp   = meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, unix.IPPROTO_TCP)
	udp   = meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, unix.IPPROTO_UDP)
	icmp  = meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, unix.IPPROTO_ICMP)
	icmp6 = meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, unix.IPPROTO_ICMPV6)

	// IP_CT_DIR_ORIGINAL and IP_CT_DIR_REPLY.
	original = conn(expr.CtKeyDIRECTION, expr.CmpOpEq, 0)
	reply    = conn(expr.CtKeyDIRECTION, expr.CmpOpEq, 1)

	fresh       = state(expr.CtStateBitNEW)
	established = state(expr.CtStateBitESTABLISHED)
	related     = state(expr.CtStateBitRELATED)

	count   = words{&expr.Counter{}}
	accept  = words{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop    = words{&expr.Verdict{Kind: expr.VerdictDrop}}
	back    = words{&expr.Verdict{Kind: expr.VerdictReturn}}
	notrack = words{&expr.Notrack{}}

	// told has the kernel report a packet to the gateway, with its headers.
	told = toGroup(reportGroup)

	reset       = words{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	unreachable = words{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
	prohibited  = words{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}

	// Each refusal is counted, and so many a second are told of.
	counted = words{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: refusedCounter}}
	seldom  = words{&expr.Limit{Type: expr.LimitTypePkts, Rate: limits.FoldKey, Unit: expr.LimitTimeSecond, Burst: limits.FoldKey}}
	logged  = toGroup(RefusedGroup)

	// tcpFlags loads SYN and ACK.
	tcpFlags = words{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x12}, Xor: []byte{0}}}
	// opening is a TCP segment with SYN and without ACK: RFC 9293, 3.1; later is
	// any other.
	opening = slices.Concat(tcpFlags, words{is(expr.CmpOpEq, []byte{0x02})})
	later   = slices.Concat(tcpFlags, words{is(expr.CmpOpNeq, []byte{0x02})})

	// toUs is a destination in the local table.
	toUs = words{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, is(expr.CmpOpEq, native(unix.RTN_LOCAL))}
)

func (f addressField) compare(a netip.Addr, op expr.CmpOp) words {
	return append(meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, f.family), f.load(f.len), is(op, a.AsSlice()))
}

func to(a netip.Addr) words      { return daddrOf(a).compare(a, expr.CmpOpEq) }
func notTo(a netip.Addr) words   { return daddrOf(a).compare(a, expr.CmpOpNeq) }
func from(a netip.Addr) words    { return saddrOf(a).compare(a, expr.CmpOpEq) }
func notFrom(a netip.Addr) words { return saddrOf(a).compare(a, expr.CmpOpNeq) }

// toSet matches a destination that is in s, or is not, of the family of s.
func toSet(s *nftables.Set, invert bool) words {
	if s.KeyType == nftables.TypeIP6Addr {
		return daddr6.inSet(s, invert)
	}
	return daddr4.inSet(s, invert)
}

// fromSet does the same for a source.
func fromSet(s *nftables.Set, invert bool) words {
	if s.KeyType == nftables.TypeIP6Addr {
		return saddr6.inSet(s, invert)
	}
	return saddr4.inSet(s, invert)
}

func (f addressField) inSet(s *nftables.Set, invert bool) words {
	return append(meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, f.family), f.load(f.len),
		&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: invert})
}

// inLoopback compares the first byte of an IPv4 address with 127.
func inLoopback(f addressField, op expr.CmpOp) words { return words{f.load(1), is(op, []byte{127})} }

func sport(p uint16) words { return portAt(0, p) }
func dport(p uint16) words { return portAt(2, p) }

func portAt(offset uint32, p uint16) words {
	return words{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}, is(expr.CmpOpEq, port(p))}
}

func icmpType(kind byte) words {
	return words{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1}, is(expr.CmpOpEq, []byte{kind})}
}

func marked(m uint32) words   { return meta(expr.MetaKeyMARK, expr.CmpOpEq, native(m)...) }
func unmarked(m uint32) words { return meta(expr.MetaKeyMARK, expr.CmpOpNeq, native(m)...) }

func connMarked(op expr.CmpOp, m uint32) words { return conn(expr.CtKeyMARK, op, native(m)...) }

func setMark(m uint32) words {
	return words{&expr.Immediate{Register: 1, Data: native(m)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}
}

func setConnMark(m uint32) words {
	return words{&expr.Immediate{Register: 1, Data: native(m)}, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}
}

// toGroup reports a packet to a group of NFLOG, with its headers.
func toGroup(group uint16) words {
	return words{&expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN, Group: group, Snaplen: netfilter.PacketSize}}
}

// setEvents says what the kernel tells of the connection, whatever the sysctl
// nf_conntrack_events is (Linux 5.19).
func setEvents(mask uint32) words {
	return words{&expr.Immediate{Register: 1, Data: native(mask)}, &expr.Ct{Key: expr.CtKeyEVENTMASK, Register: 1, SourceRegister: true}}
}

// target puts an address into register 1 and a port into register 2.
func target(a netip.Addr, p uint16) words {
	return words{&expr.Immediate{Register: 1, Data: a.AsSlice()}, &expr.Immediate{Register: 2, Data: port(p)}}
}

func tproxy(a netip.Addr, p uint16) words {
	return append(target(a, p), &expr.TProxy{Family: daddrOf(a).family, TableFamily: byte(nftables.TableFamilyINet), RegAddr: 1, RegPort: 2})
}

func dnat(a netip.Addr, p uint16) words {
	return append(target(a, p), &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(daddrOf(a).family), RegAddrMin: 1, RegProtoMin: 2})
}

func snat(a netip.Addr) words {
	return words{&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(daddrOf(a).family), RegAddrMin: 1}}
}
