package hooks

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// outerPrefix begins the name of a stand-in's outer end; its number
	// follows, and its alias is the name of the inner end.
	outerPrefix = "nm-"
	// uplinkAlias is the alias of lo in a namespace that NewUplink made.
	uplinkAlias = "nemoclaw uplink"
	// markBase plus a stand-in's number is the firewall mark of its inbound
	// flows and the routing table that leads to it.
	markBase = InboundMark
	// maxLinks is the number of stand-ins: the last byte of an address.
	maxLinks = 254
	// steeringTable is a routing table of ours in the inner namespace, and
	// its rule's preference.
	steeringTable = 1
)

// Connections that come in through an uplink have in its connection tracking a
// mark that is InboundMark under InboundMask, and the kernel tells of them.
// Packets that are refused there are logged to RefusedGroup of nfnetlink_log.
const (
	InboundMark  = 0x6e00
	InboundMask  = 0xffffff00
	RefusedGroup = 0x6e
)

// plugged is an interface of the uplink and the number of its stand-in.
type plugged struct {
	name string
	n    int
}

func (p plugged) mark() uint32  { return markBase + uint32(p.n) }
func (p plugged) outer() string { return fmt.Sprintf("%s%d", outerPrefix, p.n) }

// caller4 and caller6 are who an inbound connection seems to come from. The
// prefixes are link-local and unique-local, and not those of Calico's gateway.
func (p plugged) caller4() netip.Addr {
	return netip.AddrFrom4([4]byte{169, 254, 77, byte(p.n)})
}

func (p plugged) caller6() netip.Addr {
	a := netip.MustParseAddr("fd6e:656d:6f:1::").As16()
	a[15] = byte(p.n)
	return netip.AddrFrom16(a)
}

// mac is the hardware address of both ends: with NOARP nothing is resolved, and
// what one end sends the other takes for its own.
func (p plugged) mac() net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x6e, 0x65, 0x6d, 0x6f, byte(p.n)}
}

// NewUplink makes the namespace that the engine's interfaces are moved to.
func NewUplink() (*os.File, error) {
	ns, err := newNetns(prepareUplink)
	if err != nil {
		return nil, fmt.Errorf("cannot make the uplink: %w", err)
	}
	return ns, nil
}

// uplinkSysctls hold before any interface is there. It forwards between the
// engine's interfaces and the stand-ins, which rp_filter would take for
// forgery; and a stand-in needs no address, so none is generated.
var uplinkSysctls = []struct{ name, value string }{
	{"ipv4/ip_forward", "1"},
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv6/conf/all/forwarding", "1"},
	{"ipv6/conf/default/addr_gen_mode", "1"},
}

// prepareUplink prepares the thread's namespace.
func prepareUplink() error {
	v6, err := hasIPv6()
	if err != nil {
		return err
	}
	for _, s := range uplinkSysctls {
		if v6 || !strings.HasPrefix(s.name, "ipv6/") {
			if err := writeSysctl(s.name, s.value); err != nil {
				return err
			}
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	defer h.Close()
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("cannot bring lo up: %w", err)
	}
	if err := h.LinkSetAlias(lo, uplinkAlias); err != nil {
		return fmt.Errorf("cannot name lo: %w", err)
	}
	return makeRoomBeforeLocal(h, v6)
}

// makeRoomBeforeLocal moves the rule of the local table from preference 0 to
// 10: marked inbound flows must pass it, their destination is local here.
func makeRoomBeforeLocal(h *netlink.Handle, v6 bool) error {
	for _, family := range families(v6) {
		if err := addRule(h, family, 10, unix.RT_TABLE_LOCAL, 0); err != nil {
			return err
		}
		first := netlink.NewRule()
		first.Family, first.Priority, first.Table = family, 0, unix.RT_TABLE_LOCAL
		if err := h.RuleDel(first); err != nil {
			return fmt.Errorf("cannot move the rule of the local table: %w", err)
		}
	}
	return nil
}

func families(v6 bool) []int {
	if v6 {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

// addRule adds a routing rule; one that is there already is fine.
func addRule(h *netlink.Handle, family, pref, table int, mark uint32) error {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table, r.Mark = family, pref, table, mark
	if err := h.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("cannot add the routing rule %d: %w", pref, err)
	}
	return nil
}

// PinUplink mounts ns on file, which must not exist yet: an interface whose
// namespace ends is destroyed, and the uplink must outlive its processes.
func PinUplink(ns *os.File, file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o400)
	if err != nil {
		return fmt.Errorf("cannot pin the uplink: %w", err)
	}
	defer f.Close()
	// Through descriptors: nobody can put a symlink in between.
	from, onto := fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := unix.Mount(from, onto, "", unix.MS_BIND, ""); err != nil {
		os.Remove(file)
		return fmt.Errorf("cannot pin the uplink on %s: %w", file, err)
	}
	return nil
}

// Unpin undoes PinUplink. Nothing to undo is no error.
func Unpin(file string) error {
	for {
		err := unix.Unmount(file, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not a mount point, or no more
		}
		if err != nil {
			return fmt.Errorf("cannot unpin the uplink from %s: %w", file, err)
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot unpin the uplink: %w", err)
	}
	return nil
}

// A side is one of the two namespaces and what is in it.
type side struct {
	*netlink.Handle
	ns    *os.File
	links []netlink.Link
}

func openSide(ns *os.File) (*side, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	s := &side{Handle: h, ns: ns}
	if err := s.list(); err != nil {
		h.Close()
		return nil, err
	}
	return s, nil
}

// list reads the links anew.
func (s *side) list() (err error) {
	if s.links, err = s.LinkList(); err != nil {
		return fmt.Errorf("cannot list interfaces: %w", err)
	}
	return nil
}

func (s *side) byIndex(i int) netlink.Link {
	for _, l := range s.links {
		if l.Attrs().Index == i {
			return l
		}
	}
	return nil
}

func (s *side) byName(name string) netlink.Link {
	for _, l := range s.links {
		if l.Attrs().Name == name {
			return l
		}
	}
	return nil
}

// uplinkSide refuses every namespace that NewUplink did not make: links are
// deleted in it.
func uplinkSide(ns *os.File) (*side, error) {
	if err := notOurs(ns); err != nil {
		return nil, err
	}
	s, err := openSide(ns)
	if err != nil {
		return nil, err
	}
	if lo := s.byIndex(1); lo == nil || lo.Attrs().Alias != uplinkAlias {
		s.Close()
		return nil, errors.New("it is not an uplink that nemoclaw made")
	}
	return s, nil
}

// real are the engine's interfaces in an uplink, by index.
func (s *side) real() []netlink.Link {
	var found []netlink.Link
	for _, l := range s.links {
		if l.Attrs().Index != 1 && !isOuter(l) {
			found = append(found, l)
		}
	}
	slices.SortFunc(found, func(a, b netlink.Link) int { return cmp.Compare(a.Attrs().Index, b.Attrs().Index) })
	return found
}

func names(links []netlink.Link) []string {
	var found []string
	for _, l := range links {
		found = append(found, l.Attrs().Name)
	}
	return found
}

func isOuter(l netlink.Link) bool {
	return l.Type() == "veth" && strings.HasPrefix(l.Attrs().Name, outerPrefix) && l.Attrs().Alias != ""
}

// plugged are the stand-ins of an uplink.
func (s *side) plugged() []plugged {
	var found []plugged
	for _, l := range s.links {
		p := plugged{name: l.Attrs().Alias}
		if _, err := fmt.Sscanf(l.Attrs().Name, outerPrefix+"%d", &p.n); err == nil && isOuter(l) {
			found = append(found, p)
		}
	}
	return found
}

// standins are the links of inner that are the inner end of a veth whose outer
// end is in the uplink.
func standins(inner, uplink *side) ([]netlink.Link, error) {
	id, err := inner.GetNetNsIdByFd(int(uplink.ns.Fd()))
	if err != nil {
		return nil, fmt.Errorf("cannot tell the uplink from inside: %w", err)
	}
	var found []netlink.Link
	for _, l := range inner.links {
		a := l.Attrs()
		if l.Type() != "veth" || id < 0 || a.NetNsID != id {
			continue
		}
		if outer := uplink.byIndex(a.ParentIndex); outer != nil && isOuter(outer) {
			found = append(found, l)
		}
	}
	return found, nil
}

// fallbacks are devices that some kernels put into every namespace and that
// cannot be moved (Documentation/admin-guide/sysctl/net.rst,
// fb_tunnels_only_for_init_net). While down they lead nowhere.
var fallbacks = map[string]string{
	"tunl0": "ipip", "gre0": "gre", "gretap0": "gretap", "erspan0": "erspan", "ip_vti0": "vti",
	"ip6_vti0": "vti6", "sit0": "sit", "ip6tnl0": "ip6tnl", "ip6gre0": "ip6gre",
}

func isFallback(l netlink.Link) bool {
	a := l.Attrs()
	return fallbacks[a.Name] == l.Type() && a.Flags&net.FlagUp == 0
}

// cables are the links of inner that may lead out: all but lo, stand-ins and
// fallback devices.
func cables(inner *side, standins []netlink.Link) []netlink.Link {
	var found []netlink.Link
	for _, l := range inner.links {
		if l.Attrs().Index != 1 && !isFallback(l) && !slices.Contains(standins, l) {
			found = append(found, l)
		}
	}
	return found
}

// Prune deletes from the uplink every interface whose stand-in the engine has
// removed, as `docker network disconnect` does, and returns their names.
func Prune(uplink *os.File) ([]string, error) {
	s, err := uplinkSide(uplink)
	if err != nil {
		return nil, fmt.Errorf("cannot prune the uplink: %w", err)
	}
	defer s.Close()
	gone, err := s.prune()
	if err != nil {
		return nil, fmt.Errorf("cannot prune the uplink: %w", err)
	}
	return gone, nil
}

func (s *side) prune() ([]string, error) {
	var gone []string
	have := s.plugged()
	for _, l := range s.real() {
		name := l.Attrs().Name
		if slices.ContainsFunc(have, func(p plugged) bool { return p.name == name }) {
			continue
		}
		if err := s.remove(l); err != nil {
			return gone, err
		}
		s.links = slices.DeleteFunc(s.links, func(x netlink.Link) bool { return x == l })
		gone = append(gone, name)
	}
	if len(gone) == 0 {
		return nil, nil
	}
	return gone, s.pruneRules(have)
}

// pruneRules deletes the routing rules of stand-ins that are no more.
func (s *side) pruneRules(have []plugged) error {
	rules, err := s.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list routing rules: %w", err)
	}
	for _, r := range rules {
		n := r.Table - markBase
		if n < 1 || n > maxLinks || slices.ContainsFunc(have, func(p plugged) bool { return p.n == n }) {
			continue
		}
		if err := s.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot delete the rule %s: %w", r, err)
		}
	}
	return nil
}

// remove deletes a link. One that cannot be deleted, a physical device, is set
// down; it goes back to the host when the namespace ends.
func (s *side) remove(l netlink.Link) error {
	err := s.LinkDel(l)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = s.LinkSetDown(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("cannot remove %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// Unplug deletes every interface of the uplink. It is to be called as soon as
// init has exited: the engine may give the address to the next container, and
// two would answer for it. A namespace that NewUplink did not make, the host's
// among them, is left alone, and that is an error.
func Unplug(uplink *os.File) error {
	s, err := uplinkSide(uplink)
	if err != nil {
		return fmt.Errorf("cannot unplug the uplink: %w", err)
	}
	defer s.Close()
	for _, l := range s.real() { // the real ones first: theirs is the address
		if rerr := s.remove(l); rerr != nil {
			err = errors.Join(err, rerr)
		}
	}
	for _, l := range s.links {
		if isOuter(l) {
			if rerr := s.remove(l); rerr != nil {
				err = errors.Join(err, rerr)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("cannot unplug the uplink: %w", err)
	}
	return nil
}

// tunables are the directories below /proc/sys/net with settings of one
// interface.
var tunables = []string{"ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"}

// ours are the settings of an interface of the uplink that are not the
// engine's: it forwards, and still listens to routers although it does.
var ours = map[string]func(engine string) string{
	"ipv4/conf/rp_filter":  func(string) string { return "0" },
	"ipv4/conf/forwarding": func(string) string { return "1" },
	"ipv6/conf/forwarding": func(string) string { return "1" },
	"ipv6/conf/accept_ra": func(engine string) string {
		if engine == "1" {
			return "2"
		}
		return engine
	},
}

// readTunables reads every setting of the interface name in the thread's
// namespace. A setting that has no value (stable_secret) is left out.
func readTunables(name string) (map[string]string, error) {
	found := map[string]string{}
	for _, dir := range tunables {
		d, err := os.Open(filepath.Join("/proc/sys/net", dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6, an interface without neighbours
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the settings of %s: %w", name, err)
		}
		settings, err := d.Readdirnames(-1)
		for _, setting := range settings {
			if value, err := readSysctl(int(d.Fd()), setting); err == nil {
				found[dir+"/"+setting] = value
			}
		}
		d.Close()
		if err != nil {
			return nil, fmt.Errorf("cannot read the settings of %s: %w", name, err)
		}
	}
	return found, nil
}

// readSysctl reads the setting name, relative to the directory dir.
func readSysctl(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, 256)
	n, err := unix.Read(fd, b)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// writeTunables gives the interface name in the thread's namespace the
// engine's settings, reads them back and compares.
func writeTunables(name string, engine map[string]string) error {
	have, err := readTunables(name)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(engine)) {
		want := engine[key]
		if f := ours[key]; f != nil {
			want = f(want)
		}
		if have[key] == want {
			continue
		}
		dir, setting := filepath.Split(key)
		file := dir + name + "/" + setting
		if err := writeSysctl(file, want); err != nil {
			return err
		}
		if got, err := readSysctl(unix.AT_FDCWD, "/proc/sys/net/"+file); err != nil || got != want {
			return fmt.Errorf("cannot set %s: it is %q and not %q", file, got, want)
		}
	}
	return nil
}

// loadUplink makes the uplink's table, or replaces it whole, in one batch, and
// says whether it is the first. Making is much the faster: the kernel keeps a
// socket that deleted something from closing until all processors have let go
// of it (nf_tables, an RCU grace period).
func loadUplink(ns *os.File, links []plugged, ingress string) (first bool, err error) {
	c, err := newBatch()
	if err != nil {
		return false, fmt.Errorf("cannot write the uplink's rules: %w", err)
	}
	ports, err := ingressPorts(ingress)
	if err != nil {
		return false, err
	}
	chains := uplinkChains(links, ingress)
	fill := func(t *nftables.Table) error {
		c.AddObj(&nftables.CounterObj{Table: t, Name: refusedCounter})
		if len(ports) > 0 {
			if err := c.AddSet(portsSet(), ports); err != nil {
				return err
			}
		}
		load(c, t, chains)
		return c.commit(ns)
	}
	err = fill(c.CreateTable(table()))
	if first = err == nil; errors.Is(err, unix.EEXIST) {
		c.DelTable(table())
		err = fill(c.AddTable(table()))
	}
	if err != nil {
		return false, fmt.Errorf("cannot load the uplink's rules: %w", err)
	}
	return first, nil
}

// Refused is how many packets of connections from outside the uplink refused
// since it was asked last, or since its rules were loaded anew.
func Refused(uplink *os.File) (uint64, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(uplink.Fd())))
	if err != nil {
		return 0, fmt.Errorf("cannot count refused connections: %w", err)
	}
	o, err := c.ResetObject(&nftables.NamedObj{Table: table(), Name: refusedCounter, Type: nftables.ObjTypeCounter})
	if err != nil {
		return 0, fmt.Errorf("cannot count refused connections: %w", err)
	}
	if named, ok := o.(*nftables.NamedObj); ok {
		if n, ok := named.Obj.(*expr.Counter); ok {
			return n.Packets, nil
		}
	}
	return 0, errors.New("cannot count refused connections: the kernel's answer is none")
}

// tracking are settings of connection tracking in an uplink: connections are
// counted and have a time, and of none is told but where a rule says so. One
// begins with its first packet and no other: what comes late for one that is
// over does not look like a new one.
var tracking = []struct{ name, value string }{
	{"netfilter/nf_conntrack_acct", "1"},
	{"netfilter/nf_conntrack_timestamp", "1"},
	{"netfilter/nf_conntrack_events", "0"},
	{"netfilter/nf_conntrack_tcp_loose", "0"},
}
