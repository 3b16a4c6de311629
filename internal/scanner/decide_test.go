package scanner

import (
	"strings"
	"testing"
)

// fits reports whether a row of y, n and - allows the facts.
func fits(row string, facts []bool) bool {
	for i, cell := range strings.Fields(row) {
		if cell == "y" && !facts[i] || cell == "n" && facts[i] {
			return false
		}
	}
	return true
}

// each calls f with all combinations of n facts.
func each(n int, f func([]bool)) {
	facts := make([]bool, n)
	for bits := range 1 << n {
		for i := range facts {
			facts[i] = bits>>i&1 == 1
		}
		f(facts)
	}
}

// TestTheTablesSayWhatIsDecided holds the code against the tables beside it, in
// all combinations: exactly one row fits each.
func TestTheTablesSayWhatIsDecided(t *testing.T) {
	t.Parallel()
	const adopt, repair, mend = "adopt", "repair", "meta, or all of it"
	modes := []struct{ row, mode string }{
		{"y - - - - - - -", modeBoth},
		{"n n n - - - - -", modeNew},
		{"n n y - - - - -", adopt},
		{"n y - n - - - -", modeBoth},
		{"n y - y y - - -", repair},
		{"n y - y n y - -", modeMeta},
		{"n y - y n n y y", modeBoth},
		{"n y - y n n y n", mend},
		{"n y - y n n n -", modeData},
	}
	byHeld := map[string]map[held]string{
		adopt: {
			heldUnseen: modeNew, heldMissing: modeNew, heldRight: modeSame, heldTouched: modeMeta, heldWrong: modeBoth, heldLacking: modeMeta,
		},
		repair: {
			heldUnseen: modeSame, heldMissing: modeNew, heldRight: modeSame, heldTouched: modeMeta, heldWrong: modeBoth, heldLacking: modeSame,
		},
		mend: {
			heldUnseen: modeMeta, heldMissing: modeBoth, heldRight: modeMeta, heldTouched: modeMeta, heldWrong: modeBoth, heldLacking: modeMeta,
		},
	}
	each(8, func(b []bool) {
		for h := heldUnseen; h <= heldLacking; h++ {
			f, rows := found{b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], h}, 0
			for _, m := range modes {
				if !fits(m.row, b) {
					continue
				}
				want := m.mode
				if in, ok := byHeld[want]; ok {
					want = in[h]
				}
				if rows++; f.decide() != want {
					t.Errorf("%+v: %q, the table says %q", f, f.decide(), want)
				}
			}
			if rows != 1 {
				t.Errorf("%+v: %d rows fit", f, rows)
			}
		}
	})

	const asDirectory, excludedOrAsDirectory = fate(100), fate(101)
	fates := []struct {
		row  string
		fate fate
	}{
		{"y - - - - -", carried},
		{"n n - - n -", asDirectory},
		{"n n - - y y", asDirectory},
		{"n n - - y n", excludedOrAsDirectory},
		{"n y y - - -", carried},
		{"n y n y - -", excluded},
		{"n y n n y n", excluded},
		{"n y n n y y", gone},
		{"n y n n n -", gone},
	}
	each(6, func(b []bool) {
		for _, up := range []fate{gone, excluded, carried} {
			f, rows := unfound{b[0], b[1], up, b[2], b[3], b[4], b[5]}, 0
			for _, x := range fates {
				if !fits(x.row, b) {
					continue
				}
				if x.fate == asDirectory || x.fate == excludedOrAsDirectory && up != gone {
					x.fate = up
				} else if x.fate == excludedOrAsDirectory {
					x.fate = excluded
				}
				if rows++; f.decide() != x.fate {
					t.Errorf("%+v: %d, the table says %d", f, f.decide(), x.fate)
				}
			}
			if rows != 1 {
				t.Errorf("%+v: %d rows fit", f, rows)
			}
		}
	})
}
