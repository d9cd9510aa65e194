package monitor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nemoclaw/specs/policy"
)

// Credentials are one line of a file that its owner alone may read; whatever is
// wrong with them, they are not repeated.
func TestProxyCredentials(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		mode       os.FileMode
		auth       string
		fault      string
	}{
		{"a line", "agent:top:secret\n", 0o600, "agent:top:secret", ""},
		{"no password", "agent:", 0o400, "agent:", ""},
		{"others may read it", "agent:topsecret\n", 0o640, "", "chmod 600"},
		{"no colon", "topsecret\n", 0o600, "", "user:password"},
		{"no user", ":topsecret\n", 0o600, "", "user:password"},
		{"two lines", "agent:topsecret\r\nX-Other: 1\n", 0o600, "", "user:password"},
		{"empty", "", 0o600, "", "user:password"},
		{"long", "agent:topsecret" + strings.Repeat("x", maxAuth), 0o600, "", "user:password"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "auth")
			if err := os.WriteFile(file, []byte(tc.text), tc.mode); err != nil {
				t.Fatal(err)
			}
			p, err := openProxy(policy.Network{Proxy: "proxy.example.org:3128", ProxyAuth: file})
			switch {
			case tc.fault != "":
				if err == nil || !strings.Contains(err.Error(), tc.fault) || strings.Contains(err.Error(), "topsecret") {
					t.Errorf("the error is %v, want %q in it and no password", err, tc.fault)
				}
			case err != nil || p.Auth != tc.auth || p.Host != "proxy.example.org" || p.Port != 3128:
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
	if _, err := openProxy(policy.Network{Proxy: "proxy.example.org:3128", ProxyAuth: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a file that is not there was read")
	}
}
