package hooks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A rule is a routing rule, ip-rule(8), in the kernel's own words: struct
// fib_rule_hdr and its attributes (linux/fib_rules.h). So what we know nothing
// of is carried over as well, and compared.
type rule []byte

const (
	// firstPreference is the lowest preference of an engine's rule in an
	// uplink; what is below are ours and the local table's.
	firstPreference = 11
	// ruleFlags are those that are asked for (FIB_RULE_INVERT, _FIND_SADDR);
	// the kernel says others of a rule.
	ruleFlags = 0x2 | 0x10000

	sizeofRuleHeader = 12
)

func (r rule) family() byte { return r[0] }

// attr is a number that the rule has; 0: it has none.
func (r rule) attr(kind uint16) uint32 {
	attrs, err := nl.ParseRouteAttr(r[sizeofRuleHeader:])
	if err != nil {
		return 0
	}
	for _, a := range attrs {
		if a.Attr.Type == kind && len(a.Value) == 4 {
			return binary.NativeEndian.Uint32(a.Value)
		}
	}
	return 0
}

func (r rule) preference() uint32 { return r.attr(nl.FRA_PRIORITY) }
func (r rule) table() uint32      { return r.attr(nl.FRA_TABLE) }

func (r rule) String() string {
	return fmt.Sprintf("%d: lookup %d (IPv%d)", r.preference(), r.table(), map[byte]int{unix.AF_INET: 4, unix.AF_INET6: 6}[r.family()])
}

// isOurs tells the rules of every namespace, and those of the steering.
func (r rule) isOurs() bool {
	switch r.preference() {
	case 0:
		return r.table() == unix.RT_TABLE_LOCAL
	case steeringTable:
		return r.table() == steeringTable
	case 32766:
		return r.table() == unix.RT_TABLE_MAIN
	case 32767:
		return r.table() == unix.RT_TABLE_DEFAULT
	}
	return false
}

// readRules lists the rules of ns for IPv4 and IPv6, in their order.
func readRules(ns *os.File) (rules []rule, err error) {
	err = In(ns, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
		for _, m := range messages {
			if r := rule(m); len(r) >= sizeofRuleHeader && (r.family() == unix.AF_INET || r.family() == unix.AF_INET6) {
				flags := r[8:sizeofRuleHeader]
				binary.NativeEndian.PutUint32(flags, binary.NativeEndian.Uint32(flags)&ruleFlags)
				rules = append(rules, r)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list routing rules: %w", err)
	}
	return rules, nil
}

// engineRules are the rules of inner that network plugins made. One that would
// stand before ours in the uplink, or leads to a table of ours, cannot be
// carried over.
func engineRules(inner *os.File) ([]rule, error) {
	all, err := readRules(inner)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, rule.isOurs)
	for _, r := range all {
		if r.preference() < firstPreference {
			return nil, fmt.Errorf("cannot keep the routing rule %s: preferences below %d are the gateway's", r, firstPreference)
		}
		if t := r.table(); t > markBase && t <= markBase+maxLinks {
			return nil, fmt.Errorf("cannot keep the routing rule %s: the tables %d to %d are the gateway's", r, markBase+1, markBase+maxLinks)
		}
	}
	return all, nil
}

// addRules gives the uplink the rules that it does not have.
func addRules(uplink *os.File, rules []rule) error {
	if len(rules) == 0 {
		return nil
	}
	return In(uplink, func() error {
		for _, r := range rules {
			req := nl.NewNetlinkRequest(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
			req.AddRawData(r)
			if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("cannot add the routing rule %s: %w", r, err)
			}
		}
		return nil
	})
}

// compareRules says which rule the uplink lacks.
func compareRules(uplink *os.File, rules []rule) error {
	if len(rules) == 0 {
		return nil
	}
	have, err := readRules(uplink)
	if err != nil {
		return err
	}
	for _, want := range rules {
		if !slices.ContainsFunc(have, func(r rule) bool { return bytes.Equal(r, want) }) {
			return fmt.Errorf("the routing rule %s was lost", want)
		}
	}
	return nil
}

// isBarrier tells the routes that lead nowhere. They belong to no link, and the
// way out must not be wider than it was inside.
func isBarrier(kind int) bool {
	return kind == unix.RTN_BLACKHOLE || kind == unix.RTN_UNREACHABLE || kind == unix.RTN_PROHIBIT || kind == unix.RTN_THROW
}
