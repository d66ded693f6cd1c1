// The findings of an inspection.
"use strict";

put("findings", table([["split", true], ["state", true], ["finding", true]], DATA.findings));
