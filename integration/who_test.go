package integration

import (
	"fmt"
	"path"
	"strings"
	"testing"
)

// What is no TCP is refused by the fence, and is in the log all the same: to
// which host and port, by which process of which container; as is a question
// that gets no answer.
func TestWhatIsNoTCPIsInTheLog(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	b.spec.Linux.Sysctl = map[string]string{"net.ipv4.ping_group_range": "0 2147483647"} // as Docker does
	b.saveSpec()
	first := e.up(b, allowed...)
	c := b.mate()
	second := c.up()
	evil := e.addr["evil.example"].String()

	// logged waits for the line about a refusal, and tells whose it is.
	logged := func(proto string, number int, host string, port int) line {
		t.Helper()
		return b.await(fmt.Sprintf("%s to %s:%d", proto, host, port), func(l line) bool {
			return l.Connection.Name == proto && l.Connection.Number == number && l.Dst.Port == port &&
				(l.Dst.Hostname == host || l.Dst.IP == host && l.Dst.Hostname == "") &&
				l.More.Verdict == "refuse" && l.More.Reason == "unsupported-type"
		})
	}
	for i, k := range []struct {
		*talk
		box *box
	}{{first, b}, {second, c}, {b.exec(), b}, {c.exec(), c}} {
		whose := func(l line) {
			t.Helper()
			if p := l.Actor.Process; p.Container.UID != k.box.id || path.Base(p.File.Path) != "probe" || p.PID == 0 {
				t.Errorf("%s to %s:%d is said to be of %+v, want a process of %s", l.Connection.Name, l.Dst.Hostname, l.Dst.Port, p, k.box.id)
			}
		}
		for _, host := range []string{"quic.evil.example", evil, "2001:db8::1"} {
			to := fmt.Sprintf("%s:%d", host, 9000+i)
			if strings.Contains(host, "::") {
				to = fmt.Sprintf("[%s]:%d", host, 9000+i)
			}
			k.want("ok", "open it "+to+" udp")
			k.want("ok", "say it hello")
			whose(logged("udp", 17, host, 9000+i))
			k.want("ok", "close it")
		}
		for j, server := range []string{"198.18.0.1:53", "127.0.0.11:53", "8.8.8.8:53"} {
			for network, number := range map[string]int{"udp": 17, "tcp": 6} {
				name := fmt.Sprintf("%s%d.secret%d.evil.example", network, j, i)
				_ = k.ask("text " + name + " " + network + " " + server)
				whose(logged("dns", number, name, 53))
			}
		}
	}
	_ = first.ask("ping " + evil)
	logged("icmp", 1, evil, 0)
	if got := b.ctl("pending", "--json"); strings.Contains(got.stdout, "quic") || strings.Contains(got.stdout, "secret") {
		t.Errorf("nobody can approve what is no TCP: %s", got)
	}
	e.explain(b)
}
