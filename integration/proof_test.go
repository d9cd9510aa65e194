package integration

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// exitWeaker is nemoclawctl's exit status when a layer is weaker than asked.
const exitWeaker = 3

// proof is what nemoclawctl status says of a box.
type proof struct {
	Layers []struct {
		Layer, State, Asked, Active, Verified string
		Faults, Hidden                        []string
	}
}

// in returns the names of the layers in a state.
func (p proof) in(state string) (names []string) {
	for _, l := range p.Layers {
		if l.State == state {
			names = append(names, l.Layer)
		}
	}
	return names
}

// says returns what is said of a layer.
func (p proof) says(layer string) string {
	for _, l := range p.Layers {
		if l.Layer == layer {
			return fmt.Sprintf("%s: %s\n%s", l.Active, l.Verified, strings.Join(slices.Concat(l.Faults, l.Hidden), "\n"))
		}
	}
	return "nothing"
}

const (
	holds   = "holds"
	weaker  = "WEAKER THAN ASKED"
	unseen  = "not observable"
	notYet  = "not yet"
	overNow = "ended"
)

var everyLayer = []string{"landlock", "seccomp", "process", "fence", "uplink", "gateway", "policy", "audit", "state"}

// prove asks for the proof of the box, and the exit status that came with it.
func (b *box) prove() (proof, int) {
	b.t.Helper()
	out := b.ctl("status", "--json", b.id)
	var got struct{ Proof proof }
	if err := json.Unmarshal([]byte(out.stdout), &got); err != nil {
		b.t.Fatalf("status says no JSON: %v: %s", err, out)
	}
	return got.Proof, out.code
}

// A sandbox that nobody touched is proven whole, with a program that joined it,
// as root and as a user, and what is said of layers 1 and 2 was read in the
// kernel.
func TestStatusProves(t *testing.T) {
	for _, c := range []struct {
		who string
		box func(*testing.T) *box
	}{
		{"root", newBox},
		{"user 1000", func(t *testing.T) *box { return newBox(t).asUser() }},
		{"shared processes", func(t *testing.T) *box {
			b := newBox(t)
			b.spec.Linux.Namespaces = slices.DeleteFunc(b.spec.Linux.Namespaces, func(ns oci.LinuxNamespace) bool { return ns.Type == oci.PIDNamespace })
			return b
		}},
	} {
		t.Run(c.who, func(t *testing.T) {
			b := c.box(t)
			k, got := b.create()
			if got.code != 0 {
				t.Fatal(got)
			}
			before, code := b.prove()
			if code != 0 || !slices.Equal(before.in(notYet), []string{"landlock", "seccomp", "process", "fence", "uplink", "gateway", "policy"}) {
				t.Errorf("created: exit %d, not yet: %v", code, before.in(notYet))
			}
			if got := b.start(); got.code != 0 {
				t.Fatal(got)
			}
			k.want("ok", "status Seccomp")
			e := b.exec()
			e.want("ok", "status Seccomp")
			p, code := b.prove()
			if code != 0 || !slices.Equal(p.in(holds), everyLayer) {
				t.Fatalf("exit %d: %+v", code, p)
			}
			for _, layer := range []string{"landlock", "seccomp"} {
				if said := p.says(layer); !strings.Contains(said, "in all 2 processes") || !strings.Contains(said, "read in the kernel") {
					t.Errorf("%s: %s", layer, said)
				}
			}
			if all := b.ctl("status"); all.code != 0 || !strings.Contains(all.stdout, "all: holds") {
				t.Errorf("status of all: %s", all)
			}
			e.end()
			kill(t, b.initPID())
			if p, code := b.prove(); code != 0 || len(p.in(overNow)) != 7 || len(p.in(weaker)) != 0 {
				t.Errorf("stopped: exit %d: %+v", code, p)
			}
		})
	}
}

// Whatever is broken from outside, status names the layers that are weaker for
// it, and those alone.
func TestStatusNamesWhatIsWeaker(t *testing.T) {
	for _, c := range []struct {
		broken string
		how    func(t *testing.T, b *box)
		layers string
		says   string // of the first of them
	}{
		{"the rules are flushed", func(_ *testing.T, b *box) {
			b.inside(func() error { return nft(func(c *nftables.Conn) { c.FlushRuleset() }) })
		}, "fence", "the fence's table is missing"},
		{"a rule is added", func(_ *testing.T, b *box) {
			b.inside(func() error {
				return nft(func(c *nftables.Conn) {
					t := &nftables.Table{Family: nftables.TableFamilyINet, Name: "nemoclaw"}
					c.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: "forw"}})
				})
			})
		}, "fence", "the fence's chain forw has 1 rules and not 0"},
		{"a cable is plugged in", func(_ *testing.T, b *box) {
			b.inside(func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "out1"})
			})
		}, "fence", "leads out of the sandbox"},
		{"the steering is gone", func(_ *testing.T, b *box) {
			b.inside(func() error {
				lo, err := netlink.LinkByName("lo")
				if err == nil {
					err = netlink.LinkSetDown(lo)
				}
				return err
			})
		}, "fence", "lo is down"},
		{"the uplink is unpinned", func(_ *testing.T, b *box) {
			b.must(unix.Unmount(filepath.Join(b.gatewayDir(), "uplink"), unix.MNT_DETACH))
		}, "fence uplink", "the uplink is not pinned any more"},
		{"the monitor is killed", func(t *testing.T, b *box) { kill(t, b.monitor()) }, "gateway", "the monitor is gone"},
		{"a process is put into the cgroup", func(_ *testing.T, b *box) {
			stranger := b.stranger("/bin/busybox", "sleep", "1000")
			groups := b.cgroups()
			b.must(os.WriteFile(filepath.Join(groups[0], "cgroup.procs"), fmt.Append(nil, stranger), 0o644))
		}, "landlock seccomp process", "is in no Landlock domain"},
		{"a process enters the network", func(_ *testing.T, b *box) {
			b.stranger("nsenter", "-n", "-t", fmt.Sprint(b.initPID()), "busybox", "sleep", "1000")
		}, "landlock seccomp process", "is in no Landlock domain"},
		{"a process enters the mounts", func(_ *testing.T, b *box) {
			b.stranger("nsenter", "-m", "-t", fmt.Sprint(b.initPID()), "/bin/busybox", "sleep", "1000")
		}, "landlock seccomp process", "is in no Landlock domain"},
		{"another filter was asked for", func(_ *testing.T, b *box) {
			b.rewriteConfined(func(c map[string]any) { c["filter"] = "BgAAAAAA/38=" })
		}, "seccomp state", "none of its 2 filters is the second one that create stored"},
		{"another first filter was asked for", func(_ *testing.T, b *box) {
			b.rewriteConfined(func(c map[string]any) { c["first"] = "BgAAAAAA/38=" })
		}, "seccomp state", "the filter below the second one is not the first one that create stored"},
		{"fewer files were granted", func(_ *testing.T, b *box) {
			b.rewriteConfined(func(c map[string]any) {
				c["granted"] = slices.DeleteFunc(c["granted"].([]any), func(g any) bool { return g.(map[string]any)["path"] == "/sandbox" })
			})
		}, "landlock state", "which create did not"},
		{"more files were granted", func(_ *testing.T, b *box) {
			b.rewriteConfined(func(c map[string]any) {
				c["granted"] = append(c["granted"].([]any), map[string]any{"path": "/x", "access": 4, "dev": 1, "ino": 1})
			})
		}, "landlock state", "its domain has rules on"},
		{"other rights were granted", func(_ *testing.T, b *box) {
			b.rewriteConfined(func(c map[string]any) {
				for _, g := range c["granted"].([]any) {
					if g.(map[string]any)["path"] == "/sandbox" {
						g.(map[string]any)["access"] = 4
					}
				}
			})
		}, "landlock state", "and not {read_file}"},
		{"fewer capabilities were left", func(_ *testing.T, b *box) {
			b.rewriteConfined(func(c map[string]any) { c["capabilities"] = []string{"CAP_KILL"} })
		}, "process state", "holds in CapBnd"},
		{"more capabilities were left", func(_ *testing.T, b *box) {
			b.rewriteConfined(func(c map[string]any) { c["capabilities"] = append(c["capabilities"].([]any), "CAP_SYS_ADMIN") })
		}, "state", "is not what the audit log says"},
		{"another policy was stored", func(_ *testing.T, b *box) {
			b.rewriteState(func(s map[string]any) { s["policy"] = s["policy"].(string) + "# more\n" })
		}, "state", "the policy in it is not the one whose digest it has"},
		{"the state cannot be understood", func(_ *testing.T, b *box) {
			b.rewriteState(func(s map[string]any) { s["confined"] = "nothing" })
		}, "state", "cannot understand what create stored"},
		{"the socket is opened to others", func(_ *testing.T, b *box) {
			b.must(os.Chmod(filepath.Join(b.gatewayDir(), "control.sock"), 0o666))
		}, "state", "control.sock has the mode"},
		{"the policy file is broken", func(_ *testing.T, b *box) {
			b.policy("egress: {rulez: []}\n")
			b.await("the broken policy", func(l line) bool { return l.More.Kind == "fault" })
		}, "policy", "the file is not in force"},
		{"a line of the log is changed", func(_ *testing.T, b *box) {
			text, err := os.ReadFile(b.auditFile())
			b.must(err)
			b.must(os.WriteFile(b.auditFile(), []byte(strings.Replace(string(text), "MKNOD", "MKNOT", 1)), 0o600))
		}, "audit", "the line before it is not the one that was written there"},
	} {
		t.Run(c.broken, func(t *testing.T) {
			b := newBox(t)
			b.up().want("ok", "status Seccomp")
			b.restoring()
			c.how(t, b)
			p, code := b.prove()
			if got := strings.Join(p.in(weaker), " "); code != exitWeaker || got != c.layers {
				t.Fatalf("exit %d, weaker: %q, want %q: %+v", code, got, c.layers, p)
			}
			if said := p.says(p.in(weaker)[0]); !strings.Contains(said, c.says) {
				t.Errorf("status says %q, want %q", said, c.says)
			}
		})
	}
}

// Before start the fence is all there is of layer 3, and it is looked at.
func TestStatusBeforeStart(t *testing.T) {
	b := newBox(t)
	if _, got := b.create(); got.code != 0 {
		t.Fatal(got)
	}
	b.inside(func() error { return nft(func(c *nftables.Conn) { c.FlushRuleset() }) })
	if p, code := b.prove(); code != exitWeaker || !slices.Equal(p.in(weaker), []string{"fence"}) {
		t.Errorf("exit %d: %+v", code, p)
	}
}

// One weak sandbox among others is enough for the exit status of all.
func TestStatusOfAll(t *testing.T) {
	b := newBox(t)
	b.up().want("ok", "status Seccomp")
	b.must(os.Chmod(b.stateDir(), 0o755))
	all := b.ctl("status")
	if all.code != exitWeaker || !strings.Contains(all.stdout, "WEAKER THAN ASKED: state; holds: landlock") || !strings.Contains(all.stderr, b.id+": state") {
		t.Errorf("status of all: %s", all)
	}
}

// A worker that died and was started again makes nothing weaker.
func TestStatusAfterTheWorkerDied(t *testing.T) {
	b := newBox(t)
	k := b.up()
	k.want("ok", "status Seccomp")
	worker := b.worker()
	kill(t, worker)
	b.await("the worker", func(l line) bool { return l.More.Kind == "worker" })
	p, code := b.prove()
	if code != 0 || !slices.Equal(p.in(holds), everyLayer) {
		t.Errorf("exit %d: %+v", code, p)
	}
	if said := p.says("gateway"); !strings.Contains(said, "1 restarts") {
		t.Errorf("gateway: %s", said)
	}
}

// Where the kernel cannot be looked into, status does not claim to have looked:
// it says what it could not observe, and why. Nothing is called weaker for that.
func TestStatusSaysWhatItCannotSee(t *testing.T) {
	b := newBox(t)
	b.up().want("ok", "status Seccomp")
	b.deny = fmt.Sprintf("%d %d", unix.EPERM, unix.SYS_BPF)
	p, code := b.prove()
	if code != 0 || !slices.Equal(p.in(unseen), []string{"landlock", "seccomp"}) {
		t.Fatalf("exit %d: %+v", code, p)
	}
	for _, layer := range p.in(unseen) {
		if said := p.says(layer); !strings.Contains(said, "cannot look into the kernel") || !strings.Contains(said, "it takes root with CAP_BPF") || strings.Contains(said, "read in the kernel") {
			t.Errorf("%s: %s", layer, said)
		}
	}
	// What /proc tells is still seen.
	b.stranger("nsenter", "-n", "-t", fmt.Sprint(b.initPID()), "busybox", "sleep", "1000")
	if p, code = b.prove(); code != exitWeaker || !slices.Equal(p.in(weaker), []string{"seccomp", "process"}) {
		t.Errorf("exit %d: %+v", code, p)
	}
}

// Places that mounts keep apart are looked at where the program sees them.
func TestStatusProvesMounts(t *testing.T) {
	b := newBox(t)
	b.policy("filesystem: {read_only: [/sandbox/deep/kept/], deny: [/sandbox/hidden/]}\negress: {rules: []}\n")
	b.up().want("ok", "status Seccomp")
	p, code := b.prove()
	if code != 0 || !strings.HasPrefix(p.says("mounts"), "3 of them are there") {
		t.Fatalf("exit %d: mounts: %s", code, p.says("mounts"))
	}
	for _, c := range []struct{ place, says string }{
		{"/sandbox/hidden", "/sandbox/hidden is not a read-only mount"},
		{"/sandbox/deep/kept", "/sandbox/deep/kept is not a read-only mount"},
		{"/sandbox/deep", "/sandbox/deep is not pinned"},
	} {
		if out, err := exec.Command("nsenter", "-m", "-t", fmt.Sprint(b.initPID()), "/bin/busybox", "umount", c.place).CombinedOutput(); err != nil {
			t.Fatalf("umount: %v: %s", err, out)
		}
		p, code := b.prove()
		if code != exitWeaker || !slices.Equal(p.in(weaker), []string{"mounts"}) || !strings.Contains(p.says("mounts"), c.says) {
			t.Errorf("without %s: exit %d, weaker: %v: %s", c.place, code, p.in(weaker), p.says("mounts"))
		}
	}
}

// What was plugged in is proven with the rest, and named.
func TestStatusNamesTheWayOut(t *testing.T) {
	for _, c := range []struct {
		uplink, active string
	}{
		{"auto", "eth0 198.51.100.2/"},
		{"path", " by way of "},
		{"host", "the host's own network"},
		{"none", "no interface: every connection is refused"},
	} {
		t.Run(c.uplink, func(t *testing.T) {
			e := newEarth(t)
			b := newBox(t)
			uplink := c.uplink
			if uplink == "path" {
				uplink = e.Uplink()
			}
			b.policy(e.policy(uplink))
			k, got := b.create()
			if got.code != 0 {
				t.Fatal(got)
			}
			if uplink == "auto" {
				e.must(e.PlugInto(fmt.Sprintf("/proc/%d/ns/net", b.initPID())))
			}
			if got := b.start(); got.code != 0 {
				t.Fatal(got)
			}
			k.want("ok", "status Seccomp")
			p, code := b.prove()
			if code != 0 || !slices.Equal(p.in(holds), everyLayer) {
				t.Fatalf("exit %d: %+v", code, p)
			}
			if said := p.says("uplink"); !strings.Contains(said, c.active) {
				t.Errorf("uplink: %s", said)
			}
		})
	}
}

// Containers that share a namespace are each proven for themselves: who lives in
// one of them is no stranger to the other.
func TestStatusProvesEachOfAPod(t *testing.T) {
	b := newBox(t)
	b.up().want("ok", "status Seccomp")
	c := b.mate()
	c.up().want("ok", "status Seccomp")
	c.exec().want("ok", "status Seccomp")
	for _, box := range []*box{b, c} {
		if p, code := box.prove(); code != 0 || !slices.Equal(p.in(holds), everyLayer) {
			t.Errorf("exit %d: %+v", code, p)
		}
	}
	// A stranger is everybody's.
	b.stranger("nsenter", "-n", "-t", fmt.Sprint(c.initPID()), "busybox", "sleep", "1000")
	for _, box := range []*box{b, c} {
		if p, code := box.prove(); code != exitWeaker || len(p.in(weaker)) != 3 {
			t.Errorf("with a stranger: exit %d: %+v", code, p)
		}
	}
}

// What check tells of a bundle is what create then does: the same rules for the
// same reasons, and the same filter.
func TestCheckTellsWhatCreateDoes(t *testing.T) {
	b := newBox(t)
	b.mkdir("volume")
	b.spec.Process.Cwd = "/opt/app"
	b.spec.Mounts = append(b.spec.Mounts, oci.Mount{Destination: "/volume", Type: "bind", Source: b.path("volume"), Options: []string{"bind", "ro"}},
		oci.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs"})
	b.policy("filesystem: {read_only: [/usr], read_write: [/made, /sandbox], deny: [/sandbox/hidden/]}\nseccomp: {deny: [io_setup]}\negress: {rules: []}\n")
	b.saveSpec()
	checked := b.nemoclaw(nil, "check", "--json", "--bundle", b.path("bundle"))
	var told struct {
		Filter string `json:"second_filter"`
		Layers []struct {
			Layer string
			Lines []struct{ Verb, What, Why string }
		}
	}
	b.must(json.Unmarshal([]byte(checked.stdout), &told))
	var grants []string
	for _, l := range told.Layers[0].Lines {
		if l.Verb == "grant" && l.Why != "" {
			place, _, _ := strings.Cut(l.What, " ")
			grants = append(grants, place+" "+l.Why)
		}
	}
	if made := filepath.Join(b.rootfs(), "made"); exists(made) {
		t.Errorf("check has made %s", made)
	}
	b.up()
	text, err := os.ReadFile(filepath.Join(b.stateDir(), "sandbox.json"))
	b.must(err)
	var stored struct {
		Confined struct {
			Filter  []byte
			Granted []struct{ Path, Why string }
		}
	}
	b.must(json.Unmarshal(text, &stored))
	var granted []string
	for _, g := range stored.Confined.Granted {
		if g.Why != "built-in" {
			granted = append(granted, g.Path+" "+g.Why)
		}
	}
	slices.Sort(grants)
	slices.Sort(granted)
	if !slices.Equal(grants, granted) {
		t.Errorf("check told\n%q\ncreate granted\n%q", grants, granted)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(stored.Confined.Filter)); sum != told.Filter {
		t.Errorf("check told the filter %s, create stored %s", told.Filter, sum)
	}
}

func exists(file string) bool { _, err := os.Lstat(file); return err == nil }

func nft(change func(*nftables.Conn)) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	change(c)
	return c.Flush()
}

// stranger starts a program of the host's that ends with the test, and returns
// when it has become what it was to be.
func (b *box) stranger(args ...string) int {
	b.t.Helper()
	r, w, err := os.Pipe()
	b.must(err)
	defer r.Close()
	// The last to hold the pipe is sh, which closes it by becoming the program.
	if at := slices.IndexFunc(args, func(a string) bool { return strings.HasSuffix(a, "busybox") }); at >= 0 {
		args = slices.Concat(args[:at], []string{args[at], "sh", "-c", `exec 3>&-; exec "$@"`, "sh"}, args[at:])
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.ExtraFiles = []*os.File{w}
	b.must(cmd.Start())
	w.Close()
	b.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := r.Read(make([]byte, 1)); err == nil {
		b.t.Fatal("the stranger wrote into the pipe")
	}
	return cmd.Process.Pid
}

// cgroups are the container's.
func (b *box) cgroups() (dirs []string) {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.stateDir(), "cgroups.json"))
	b.must(err)
	var paths map[string]string
	b.must(json.Unmarshal(text, &paths))
	for _, dir := range paths {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// restoring puts the state file back before the box is deleted.
func (b *box) restoring() {
	file := filepath.Join(b.stateDir(), "sandbox.json")
	text, err := os.ReadFile(file)
	b.must(err)
	b.t.Cleanup(func() { b.must(os.WriteFile(file, text, 0o600)) })
}

// rewriteState changes the state file from outside.
func (b *box) rewriteState(change func(map[string]any)) {
	b.t.Helper()
	file := filepath.Join(b.stateDir(), "sandbox.json")
	text, err := os.ReadFile(file)
	b.must(err)
	var state map[string]any
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	b.must(d.Decode(&state))
	change(state)
	text, err = json.Marshal(state)
	b.must(err)
	b.must(os.WriteFile(file, text, 0o600))
}

// rewriteConfined changes what create stored of layers 1 and 2.
func (b *box) rewriteConfined(change func(map[string]any)) {
	b.t.Helper()
	b.rewriteState(func(s map[string]any) { change(s["confined"].(map[string]any)) })
}
