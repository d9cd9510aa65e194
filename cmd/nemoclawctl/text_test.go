package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// nasty is what programs in sandboxes call themselves to move an operator's
// cursor, hide a line, turn the direction of writing or forge one.
const nasty = "x\x1b[2J\u009b31m\u202e\u2028\r\a\xff\n2026-11-22 12:00:00  allow   api.example.org:443"

// Whatever a sandbox says, a terminal shows it as characters on the line where
// it belongs, and JSON still means the same.
func TestTerminalIsSafe(t *testing.T) {
	safe := func(what, text string) {
		t.Helper()
		if i := strings.IndexFunc(text, func(r rune) bool {
			return r < ' ' && r != '\n' || r == 0x7f || 0x80 <= r && r < 0xa0 || r == '\u202e' || r == '\u2028'
		}); i >= 0 {
			t.Errorf("%s: %q reaches the terminal", what, text[i:])
		}
	}
	var out strings.Builder
	refused := audit.NewNetwork("web", audit.ActivityRefuse)
	refused.Dst = &audit.Endpoint{Hostname: nasty, Port: 443}
	refused.Rule = &audit.Rule{Name: nasty}
	refused.Unmapped.Detail = nasty
	refused.Actor = &audit.Actor{Process: audit.Process{Name: nasty, File: &audit.File{Path: nasty}}}
	ended := audit.NewChange("web", audit.KindWorker, "worker ended: "+nasty)
	for _, e := range []any{refused, ended} {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		out.Reset()
		if err := showText(&out, line); err != nil {
			t.Fatal(err)
		}
		safe("log", out.String())
		first, rest, _ := strings.Cut(out.String(), "\n")
		if !strings.Contains(first, "x") || rest != "" && !strings.HasPrefix(rest, "    ") {
			t.Errorf("log: a line is forged: %q", out.String())
		}
	}

	pending := control.Pending{Host: nasty, Process: &control.Process{Exe: nasty, Ancestors: []string{nasty, "\U0001d11e"}}}
	out.Reset()
	if err := printJSON(&out, pending); err != nil {
		t.Fatal(err)
	}
	safe("JSON", out.String())
	var back control.Pending
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || back.Host != strings.ToValidUTF8(nasty, "\ufffd") || back.Process.Ancestors[1] != "\U0001d11e" {
		t.Errorf("the JSON means %+v, %v", back, err)
	}
	out.Reset()
	if err := table(&out, [][]string{{nasty, who(pending.Process)}}); err != nil {
		t.Fatal(err)
	}
	safe("table", out.String())
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("a row became several: %q", out.String())
	}
}

// A connection from outside is shown with who called, and allowed ones do not
// stand in anybody's way.
func TestInboundIsShown(t *testing.T) {
	for _, c := range []struct {
		line, want string
		passing    bool
	}{
		{`"src_endpoint":{"ip":"203.0.113.9","port":2001},"dst_endpoint":{"ip":"172.17.0.2","port":80},"traffic":{"bytes_in":300,"bytes_out":4000},"unmapped":{"verdict":"end"}`,
			"end     172.17.0.2:80 from 203.0.113.9:2001 sent 4000 got 300 bytes", true},
		{`"count":80,"dst_endpoint":{"uid":"web"},"firewall_rule":{"name":"network.ingress: none"},"unmapped":{"verdict":"refuse","reason":"ingress"}`,
			"refuse  ? from outside ingress (80 times) by network.ingress: none", false},
	} {
		line := []byte(`{"class_uid":4001,"connection_info":{"direction_id":1},` + c.line + `}`)
		var out strings.Builder
		if err := showText(&out, line); err != nil || !strings.HasSuffix(out.String(), "  "+c.want+"\n") || passing(line) != c.passing {
			t.Errorf("%s is shown as %q, %v, passing %v", line, out.String(), err, passing(line))
		}
	}
}

// A process is one line of letters, whatever it is called, and shows whether it
// may be another.
func TestWho(t *testing.T) {
	for _, c := range []struct {
		p    *control.Process
		want string
	}{
		{nil, "-"},
		{&control.Process{PID: 12, Name: "curl", Exe: "/usr/bin/cu\x1b[2Jrl\n\u202e"}, "/usr/bin/cu\ufffd[2Jrl \ufffd[12]"},
		{&control.Process{PID: 12, Name: "cu\trl", Unsure: "it has ended"}, "cu rl[12]?"},
		{&control.Process{PID: 12}, "?[12]"},
	} {
		var b strings.Builder
		if err := table(&b, [][]string{{who(c.p)}}); err != nil || b.String() != c.want+"\n" {
			t.Errorf("%+v is shown as %q, %v, want %q", c.p, b.String(), err, c.want)
		}
	}
}

// A refused packet is told from a connection, and a doubt about whose it was is
// shown.
func TestPacketsAreTold(t *testing.T) {
	n := audit.NewNetwork("web", audit.ActivityRefuse)
	n.Dst = &audit.Endpoint{Hostname: "example.org", Port: 443}
	n.Actor = &audit.Actor{Process: audit.Process{PID: 12, Name: "curl"}}
	n.Unmapped.Verdict, n.Unmapped.Unsure = "refuse", "it has ended"
	for proto, want := range map[string]string{"udp": "refuse  example.org:443/udp curl[12]?", "tls": "refuse  example.org:443 curl[12]?", "dns": "refuse  example.org:443 curl[12]?"} {
		n.Connection = &audit.Connection{ProtocolName: proto}
		if got := networkText(n); got != want {
			t.Errorf("over %s: %q, want %q", proto, got, want)
		}
	}
}

// What completion offers is compared with what is typed and never expanded, and
// is offered only if it means itself on a command line.
func TestCompletionRunsNothing(t *testing.T) {
	for word, want := range map[string]bool{
		"api.example.org:443": true, "[2001:db8::1]:443": true,
		"$(id).example:443": false, "`id`:443": false, "a;id:443": false, "a b:443": false, "~root:1": false, "*:1": false, "a'b:1": false,
	} {
		if plain(word) != want {
			t.Errorf("%q is offered: %v, want %v", word, !want, want)
		}
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	cmd := exec.Command(bash, "-c", bashCompletion+`
nemoclawctl() { printf '%s\n' 'x$(touch ran)' 'x`+"`touch ran`"+`' 'x*' 'x.example:443'; }
COMP_LINE='nemoclawctl approve web x' COMP_POINT=25
_nemoclawctl
printf '%s\n' "${COMPREPLY[@]}"`)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "x$(touch ran)\nx`touch ran`\nx*\nx.example:443\n" {
		t.Errorf("completed %q, %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(cmd.Dir, "ran")); err == nil {
		t.Error("a word was run")
	}
}
