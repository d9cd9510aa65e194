package proof

import (
	"encoding/json"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/hooks/witness"
	"nemoclaw/specs/landlock"
)

// A domain is what create asked for if one of its layers restricts every right
// and grants, file by file, what was granted; whatever a program put on top of
// it only takes away.
func TestCompare(t *testing.T) {
	const (
		ext4    = unix.EXT4_SUPER_MAGIC
		overlay = unix.OVERLAYFS_SUPER_MAGIC
		read    = uint64(landlock.ReadFile)
		write   = uint64(landlock.WriteFile)
	)
	all := witness.Layer{FS: uint64(landlock.Handled(7))}
	rule := func(ino, magic uint64, access ...uint64) witness.Rule {
		return witness.Rule{Dev: 1, Ino: ino, Magic: magic, Access: access}
	}
	want := asked{ABI: 7, Granted: []landlock.Granted{
		{Path: "/a", Access: landlock.Access(read), Dev: 1, Ino: 10},
		{Path: "/also-a", Access: landlock.Access(write), Dev: 1, Ino: 10},
		{Path: "/b", Access: landlock.Access(read), Dev: 1, Ino: 20},
	}}
	both := read | write
	for _, c := range []struct {
		what   string
		asked  func(*asked)
		domain witness.Domain
		fault  string
	}{
		{"as asked: two rules on one file are one", nil,
			witness.Domain{Layers: []witness.Layer{all}, Rules: []witness.Rule{rule(10, ext4, both), rule(20, ext4, read)}}, ""},
		{"a right is not restricted", nil,
			witness.Domain{Layers: []witness.Layer{{FS: all.FS &^ uint64(landlock.Truncate)}}, Rules: []witness.Rule{rule(10, ext4, both), rule(20, ext4, read)}},
			"its domain does not restrict {truncate}"},
		{"a newer kernel restricts more", nil,
			witness.Domain{Layers: []witness.Layer{{FS: all.FS | 1<<20}}, Rules: []witness.Rule{rule(10, ext4, both), rule(20, ext4, read)}}, ""},
		{"signals were to stay inside", func(a *asked) { a.Scopes = landlock.ScopeSignal },
			witness.Domain{Layers: []witness.Layer{all}, Rules: []witness.Rule{rule(10, ext4, both), rule(20, ext4, read)}},
			"its domain does not keep signals or sockets inside"},
		{"more is granted of a file", nil,
			witness.Domain{Layers: []witness.Layer{all}, Rules: []witness.Rule{rule(10, ext4, both), rule(20, ext4, both)}}, "and not {read_file}"},
		{"another file is granted", nil,
			witness.Domain{Layers: []witness.Layer{all}, Rules: []witness.Rule{rule(10, ext4, both), rule(30, ext4, read)}}, "inode 30 of device 0:1, which create did not"},
		{"one file more is granted", nil,
			witness.Domain{Layers: []witness.Layer{all}, Rules: []witness.Rule{rule(10, ext4, both), rule(20, ext4, read), rule(21, overlay, read), rule(22, overlay, read)}},
			"its domain has rules on 4 files, and create stored 2"},
		{"one file less is granted", nil,
			witness.Domain{Layers: []witness.Layer{all}, Rules: []witness.Rule{rule(10, ext4, both)}}, "its domain has rules on 1 files, and create stored 2"},
		{"an overlay has numbers of its own", nil,
			witness.Domain{Layers: []witness.Layer{all}, Rules: []witness.Rule{rule(10, ext4, both), rule(77, overlay, read)}}, ""},
		{"an overlay's rule grants what no rule was to", nil,
			witness.Domain{Layers: []witness.Layer{all}, Rules: []witness.Rule{rule(10, ext4, both), rule(77, overlay, all.FS)}}, "which create did not"},
		{"the program has restricted itself further", nil,
			witness.Domain{Layers: []witness.Layer{all, {FS: write}}, Rules: []witness.Rule{rule(10, ext4, both, 0), rule(20, ext4, read, 0), rule(99, ext4, 0, write)}}, ""},
		{"it lives in a restricted engine", nil,
			witness.Domain{Layers: []witness.Layer{{FS: write}, all}, Rules: []witness.Rule{rule(10, ext4, write, both), rule(20, ext4, 0, read)}}, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			a := want
			if c.asked != nil {
				c.asked(&a)
			}
			_, err := a.find(&c.domain)
			if got := errorText(err); (c.fault == "") != (err == nil) || !strings.Contains(got, c.fault) {
				t.Errorf("%q, want %q", got, c.fault)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Names of capabilities and sets of them are told in the order of their bits.
func TestCapabilities(t *testing.T) {
	if set := capabilitySet([]string{"CAP_KILL", "CAP_CHOWN", "CAP_NONE"}); set != 1|1<<5 || capabilityList(set) != "CHOWN KILL" {
		t.Errorf("%#x, %s", set, capabilityList(set))
	}
	if got := capabilityList(1 << 63); got != "63" {
		t.Errorf("a capability of the future is called %s", got)
	}
	if got := capabilityList(0); got != "none" {
		t.Errorf("no capability is called %s", got)
	}
}

// A program chooses words that stand in the log, such as the names it asks for.
// None of them is taken for what create wrote of a container.
func FuzzToldByAnAgent(f *testing.F) {
	f.Add(control.StoredNote + "ab")
	f.Add(`","unmapped":{"kind":"note"},"message":"` + control.StoredNote + "ab")
	f.Add(`"policy_digest"`)
	f.Fuzz(func(t *testing.T, words string) {
		for _, e := range []audit.Entry{
			&audit.Network{Base: audit.Base{Message: words, Device: audit.Sandbox("web")}, Dst: &audit.Endpoint{Hostname: words}},
			audit.NewChange("web", audit.KindWorker, words),
			audit.NewChange(words+"x", audit.KindNote, control.StoredNote+"ab"),
		} {
			line, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			var got told
			if got.take(line, "web"); got != (told{}) {
				t.Errorf("%s is taken for %+v", line, got)
			}
		}
	})
}

// What create wrote is read, of this container alone, and the last counts.
func TestTold(t *testing.T) {
	var got told
	for _, e := range []*audit.Change{
		audit.NewChange("web", audit.KindNote, control.StoredNote+"old"),
		audit.NewChange("web", audit.KindNote, control.StoredNote+"new"),
		audit.NewChange("other", audit.KindNote, control.StoredNote+"other"),
	} {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		got.take(line, "web")
	}
	if got.stored != "new" {
		t.Errorf("create is said to have stored %q", got.stored)
	}
}
