package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// caller serves caller.good.example:7000, which tells who calls.
func (e *earth) caller() {
	e.t.Helper()
	_, err := e.ServeTCP("caller.good.example", 7000, func(c net.Conn) {
		if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
			fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
		}
	})
	e.must(err)
}

// mountNetns binds the network namespace at path to a file of the box, as
// ip-netns(8) does below /run/netns, until the test ends.
func (b *box) mountNetns(path string) string {
	b.t.Helper()
	file := b.path("blue")
	b.must(os.WriteFile(file, nil, 0o400))
	b.must(unix.Mount(path, file, "", unix.MS_BIND, ""))
	b.t.Cleanup(func() { unix.Unmount(file, unix.MNT_DETACH) })
	return file
}

// layout is all that a network namespace has, but for what the kernel counts and
// does by itself in its own time: link-local addresses.
func layout(t *testing.T, path string) (all []string) {
	t.Helper()
	add := func(kind string, things ...any) { all = append(all, kind+" "+fmt.Sprintln(things...)) }
	err := within(path, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			add("link", a.Index, a.Name, a.Alias, l.Type(), a.HardwareAddr, a.MTU, a.Flags, a.NetNsID, a.ParentIndex)
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range addrs {
			add("address", a.LinkIndex, a)
		}
		if err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			add("route", r)
		}
		if err != nil {
			return err
		}
		rules, err := netlink.RuleList(netlink.FAMILY_ALL)
		for _, r := range rules {
			add("rule", r)
		}
		if err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		for _, table := range tables {
			add("table", table.Name)
		}
		for _, name := range []string{"ipv4/ip_forward", "ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter", "ipv6/conf/all/forwarding", "core/somaxconn"} {
			value, rerr := os.ReadFile("/proc/sys/net/" + name)
			add("sysctl", name, string(value), rerr)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return slices.DeleteFunc(all, func(s string) bool { return strings.Contains(s, "fe80:") })
}

// changed reports what a namespace has lost (-) and got (+).
func changed(t *testing.T, before, after []string) {
	t.Helper()
	for _, s := range before {
		if !slices.Contains(after, s) {
			t.Errorf("-%s", s)
		}
	}
	for _, s := range after {
		if !slices.Contains(before, s) {
			t.Errorf("+%s", s)
		}
	}
}

// A namespace that the policy names, and the host's own, are ways out with their
// own identity. What is not allowed does not pass there either, the host's own
// servers least of all; and when the sandbox has ended they are as they were.
func TestUplinkOfThePolicy(t *testing.T) {
	for _, kind := range []string{"named", "host"} {
		t.Run(kind, func(t *testing.T) {
			e := newEarth(t)
			e.caller()
			e.Name("uplink.example", world.UplinkAddr)
			b := newBox(t)
			uplink := kind
			if kind == "named" {
				uplink = b.mountNetns(e.Uplink())
			} else {
				b.host = e.Uplink()
			}
			b.must(within(e.Uplink(), func() error { // a server of the host's, for everybody
				l, err := net.Listen("tcp", ":7000")
				if err == nil {
					t.Cleanup(func() { l.Close() })
					go e.ever(l, "the host")
				}
				return err
			}))
			before := layout(t, e.Uplink())
			b.policy(e.policy(uplink, append(allowed, "caller.good.example 7000", "uplink.example 7000", "local.example 7000")...))
			main := b.up()
			for _, k := range []*talk{main, b.exec()} {
				k.want("ok "+world.UplinkAddr.String(), "dial caller.good.example:7000 hello")
				k.want("ok 200 OK hello from api.good.example", "tls api.good.example:443 api.good.example")
				for _, to := range []string{"echo.evil.example", "uplink.example", "local.example", world.UplinkAddr.String(), world.Neighbour.String()} {
					k.want("ECONNRESET", "dial "+to+":7000 hello")
				}
			}
			if got := b.ctl("status", b.id).stdout; !strings.Contains(got, " "+uplink+"\n") {
				t.Errorf("status does not say that the uplink is %s: %s", uplink, got)
			}
			e.explain(b)
			for _, name := range e.serving() {
				if name != "api.good.example" {
					t.Errorf("%s was reached", name)
				}
			}
			if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
				t.Fatalf("delete: %s", got)
			}
			changed(t, before, layout(t, e.Uplink()))
		})
	}
}

// ever serves echoes until l is closed.
func (e *earth) ever(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			e.echo(name)(c)
		}()
	}
}

// With "uplink: none" nothing goes out by a cable that an engine plugs in, be it
// before the start or later; it brings connections in if ingress says so.
func TestUplinkNoneBeatsAnEnginesCable(t *testing.T) {
	for _, plugged := range []string{"before the start", "later"} {
		for _, ingress := range []string{"all", "none"} {
			t.Run(plugged+", ingress "+ingress, func(t *testing.T) {
				e := newEarth(t)
				b := newBox(t)
				b.policy(strings.Replace(e.policy("none", allowed...), "{", "{ingress: "+ingress+", ", 1))
				main, created := b.create()
				if created.code != 0 {
					t.Fatalf("create: %s", created)
				}
				inner := fmt.Sprintf("/proc/%d/ns/net", b.initPID())
				if plugged == "before the start" {
					e.must(e.PlugInto(inner))
				}
				if got := b.start(); got.code != 0 {
					t.Fatalf("start: %s", got)
				}
				if plugged == "later" {
					e.must(e.PlugInto(inner))
					b.await("the link", func(l line) bool { return strings.Contains(l.Message, "the engine's links are now: eth0") })
				}
				main.want("ok", "hold tcp4 0.0.0.0:8080")
				for _, k := range []*talk{main, b.exec()} {
					for _, verb := range waysOut(e) {
						if got := k.ask(verb); !isRefusal(got) {
							t.Errorf("%s: %s: %s, want a refusal", k.name, verb, got)
						}
					}
					k.want("ECONNRESET", "dial echo.good.example:7000 hello")
				}
				b.await("a refusal for want of an uplink", func(l line) bool {
					return l.Dst.Hostname == "echo.good.example" && l.More.Reason == "no-uplink"
				})
				e.knock(ingress == "all")
				for to, n := range e.opened() {
					t.Errorf("%d connections or datagrams left for %s", n, to)
				}
				got := b.ctl("status", b.id)
				if got.code != 0 || !strings.Contains(got.stdout, "uplink:") || !strings.Contains(got.stdout, " none\n") || !strings.Contains(got.stdout, "network.uplink none") {
					t.Errorf("status: %s", got)
				}
				if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
					t.Fatalf("delete: %s", got)
				}
				for _, l := range layout(t, e.Internet()) {
					if strings.HasPrefix(l, "link") && strings.Contains(l, " world1 ") {
						t.Errorf("the cable is left over: %s", l)
					}
				}
			})
		}
	}
}

// knock connects to the sandbox's port 8080 from the internet, by its cable.
func (e *earth) knock(passes bool) {
	e.t.Helper()
	c, err := e.Dial(netip.AddrPortFrom(world.PluggedAddr, 8080))
	said := ""
	if err == nil {
		defer c.Close()
		io.WriteString(c, "knock\n")
		said, _ = bufio.NewReader(c).ReadString('\n')
	}
	if passes != (said == "hello\n") {
		e.t.Errorf("a connection from outside was answered %q (%v)", said, err)
	}
}

// What cannot be a way out is refused at create, and nothing is left of it.
func TestUplinkAbsurd(t *testing.T) {
	e := newEarth(t)
	other, _ := e.sandbox(allowed...)
	before := layout(t, e.Uplink())
	for _, c := range []struct {
		name, want string
		path       func(b *box) string
	}{
		{"nothing", "it does not exist", func(b *box) string { return b.path("absent") }},
		{"a dangling name", "it does not exist", func(b *box) string { b.must(os.Symlink("/absent", b.path("link"))); return b.path("link") }},
		{"a file", "it is not a namespace", func(b *box) string { b.write("file", ""); return b.path("file") }},
		{"a directory", "it is not a namespace", func(b *box) string { return b.dir }},
		{"a pipe", "it is not a namespace", func(b *box) string { b.must(unix.Mkfifo(b.path("fifo"), 0o600)); return b.path("fifo") }},
		{"another kind", "it is a namespace of another kind", func(*box) string { return "/proc/self/ns/mnt" }},
		{"a name that ended", "it is not a namespace", func(b *box) string {
			file := b.mountNetns(e.Uplink())
			b.must(unix.Unmount(file, unix.MNT_DETACH))
			return file
		}},
		{"the container's own", "it is the container's own network namespace", func(b *box) string {
			file := b.mountNetns(e.Uplink())
			b.netns(file)
			return file
		}},
		{"the host's by a path", `write "uplink: host" to mean it`, func(*box) string { return "/proc/self/ns/net" }},
		{"another sandbox's inside", "it is another sandbox's", func(*box) string { return fmt.Sprintf("/proc/%d/ns/net", other.initPID()) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			b.pod = true // the other one lives
			b.policy(e.policy(c.path(b), allowed...))
			k, got := b.create()
			if got.code == 0 || !strings.Contains(got.stderr, "cannot use network.uplink") || !strings.Contains(got.stderr, c.want) {
				t.Errorf("create: %s, want %q", got, c.want)
			}
			if strings.Contains(got.stderr, "no such file") {
				t.Errorf("an engine takes this for a missing program: %s", got.stderr)
			}
			if !k.silent() {
				t.Error("the program ran")
			}
			if b.stateDir() != "" {
				t.Errorf("left behind: %s", b.stateDir())
			}
			changed(t, before, layout(t, e.Uplink()))
		})
	}
	t.Run("another sandbox's uplink", func(t *testing.T) {
		third := newBox(t)
		third.pod = true
		third.policy(e.policy("auto", allowed...))
		third.up()
		b := newBox(t)
		b.pod = true
		b.policy(e.policy(third.gatewayDir()+"/uplink", allowed...))
		if _, got := b.create(); got.code == 0 || !strings.Contains(got.stderr, "it is the uplink of another sandbox") {
			t.Errorf("create: %s", got)
		}
	})
	t.Run("with a cable beside it", func(t *testing.T) {
		b := newBox(t)
		b.pod = true
		b.policy(e.policy(e.Uplink(), allowed...))
		k, got := b.create()
		if got.code != 0 {
			t.Fatalf("create: %s", got)
		}
		e.must(e.PlugInto(fmt.Sprintf("/proc/%d/ns/net", b.initPID())))
		if got := b.start(); got.code == 0 || !strings.Contains(got.stderr, "the engine plugged in eth0") {
			t.Errorf("start: %s", got)
		}
		if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
			t.Errorf("delete: %s", got)
		}
		if !k.silent() {
			t.Error("the program ran")
		}
	})
}

// The name of an uplink may go while its namespace is in use: the sandbox keeps
// what it was created with, also over a repair. When the link out of it goes,
// connections fail.
func TestUplinkVanishes(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	file := b.mountNetns(e.Uplink())
	b.policy(e.policy(file, allowed...))
	main, created := b.create()
	if created.code != 0 {
		t.Fatalf("create: %s", created)
	}
	b.must(unix.Unmount(file, unix.MNT_DETACH))
	b.must(os.Remove(file))
	if got := b.start(); got.code != 0 {
		t.Fatalf("start: %s", got)
	}
	main.want("ok hello", "dial echo.good.example:7000 hello")
	kill(t, b.monitor())
	if got := b.nemoclaw(nil, "repair", b.id); got.code != 0 {
		t.Fatalf("repair: %s", got)
	}
	main.want("ok hello", "dial echo.good.example:7000 hello")
	b.must(within(e.Uplink(), func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}))
	main.want("ECONNRESET", "dial echo.good.example:7000 hello")
	b.await("why", func(l line) bool { return l.More.Verdict == "fail" && strings.Contains(l.More.Detail, "unreachable") })
}
